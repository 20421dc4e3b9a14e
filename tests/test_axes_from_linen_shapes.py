"""A kernel's shape is held against the configuration of the layer that makes it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from optax_muon import axes_from_linen

X = jax.ShapeDtypeStruct((2, 3), jnp.float32)


def making(layer, shape):
    """A subclass of a layer, whose kernel has another shape."""

    class Other(layer):
        @nn.compact
        def __call__(self, x, *_):
            return x + self.param("kernel", nn.initializers.zeros, shape).sum()

    return Other


CASES = {
    "out, in": (making(nn.Dense, (5, 3))(5), "(any, 5)"),
    "experts": (making(nn.Dense, (4, 3, 5))(5), "(any, 5)"),
    "vector": (making(nn.Dense, (3,))(3), "(any, 3)"),
    "heads first": (making(nn.DenseGeneral, (2, 4, 3))((2, 4)), "(any, 2, 4)"),
    "einsum": (making(nn.Einsum, (5, 3))((3, 5), "td,df->tf"), "(3, 5)"),
    "conv": (making(nn.Conv, (5, 3, 2))(5, 2), "(2, any, 5)"),
    "conv of matrices": (making(nn.Conv, (3, 5))(5, (2,)), "(2, any, 5)"),
    "transposed": (making(nn.ConvTranspose, (5, 3, 2))(5, (2,)), "(2, any, 5)"),
    "swapped": (
        making(nn.ConvTranspose, (2, 3, 5))(5, (2,), transpose_kernel=True),
        "(2, 5, any)",
    ),
    "local": (making(nn.ConvLocal, (6, 5, 3))(5, (2,)), "(any, any, 5)"),
}


@pytest.mark.parametrize(("module", "expected"), CASES.values(), ids=CASES)
def test_other_shapes_are_listed(module, expected):
    with pytest.raises(ValueError, match="axes_from_linen cannot tell") as caught:
        axes_from_linen(module, X)
    (line,) = str(caught.value).splitlines()[1:-1]
    assert line.startswith("  kernel  ")
    assert f"would be {expected} by its configuration" in line
    others = {"kernel": None}
    assert axes_from_linen(module, X, others=others) == others


class WiderCell(nn.ConvLSTMCell):
    """Its gates are wider than the cell says, so they are no parts of the kernel."""

    @nn.compact
    def __call__(self, carry, x):
        return carry, nn.Conv(4 * self.features + 1, (3,), name="ih")(x)


def test_parts_that_do_not_add_up_are_listed():
    cell = WiderCell(2, (3,))
    with pytest.raises(ValueError, match=r"ih/kernel .* add up to 8"):
        axes_from_linen(cell, None, jnp.zeros((1, 4, 3)))
