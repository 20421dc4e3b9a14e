"""Stacks of Linen modules whose lengths coincide with other lengths."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from optax_muon import MatrixAxes, axes_from_linen

X = jax.ShapeDtypeStruct((2, 8), jnp.float32)


def scanned(body, axis, length, name):
    scan = nn.scan(
        body,
        variable_axes={"params": axis},
        split_rngs={"params": True},
        length=length,
    )
    return scan(name=name)


class Block(nn.Module):
    """Its first kernel is as wide as there are layers; the second tells the axis."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(5, use_bias=False, name="up")(x)
        return nn.Dense(8, use_bias=False, name="down")(y), None


class Square(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(8, use_bias=False, name="up")(x), None


class Stacks(nn.Module):
    """Stacks side by side: (body, axis, length) of each."""

    stacks: tuple

    @nn.compact
    def __call__(self, x):
        for i, stack in enumerate(self.stacks):
            x, _ = scanned(*stack, name=f"stack_{i}")(x, None)
        return x


@pytest.mark.parametrize("axis", [0, 1])
def test_the_body_of_a_scan_is_stacked_as_a_whole(axis):
    """Along axis 1 the first kernel is (8, 8, 5), as it is along axis 0."""
    axes = axes_from_linen(Stacks(((Block, axis, 8),)), X)["stack_0"]
    matrix = MatrixAxes(0, 2) if axis else MatrixAxes(1, 2)
    assert axes["up"]["kernel"] == matrix


@pytest.mark.parametrize("length", [6, 8])
def test_stacks_side_by_side_do_not_tell(length):
    model = Stacks(((Block, 1, 8), (Square, 0, length)))
    axes = axes_from_linen(
        model, X, others={"stack_1": MatrixAxes(1, 2)} if length == 8 else None
    )
    assert axes["stack_0"]["up"]["kernel"] == MatrixAxes(0, 2)
    model = Stacks(((Square, 1, 8), (Square, 0, length)))
    with pytest.raises(ValueError, match=r"stack_0/up/kernel .* may be any of"):
        axes_from_linen(model, X)
