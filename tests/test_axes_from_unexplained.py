"""Parameters that no layer explains: their stacks, their names and what is no array."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from optax_muon import MatrixAxes, axes_from_linen, axes_from_nnx

X = jax.ShapeDtypeStruct((2, 8), jnp.float32)


class Raw(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x @ self.param("w", nn.initializers.zeros, (8, 8)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(Raw, length=3, **options)(name="layers")(x, None)[0]


def test_others_may_not_use_a_stacked_axis():
    with pytest.raises(ValueError, match=r"axis 0 is stacked.*whole stored leaf"):
        axes_from_linen(Scanned(), X, others={"w": MatrixAxes(0, 1)})
    axes = MatrixAxes(-2, -1)
    found = axes_from_linen(Scanned(), X, others={"w": axes})
    assert found == {"layers": {"w": axes}}


class OfTuples(nn.Module):
    @nn.compact
    def __call__(self, x):
        a, _ = self.param("pair", lambda _: (jnp.ones((8, 4)), jnp.ones(4)))
        return x @ a


def test_parameters_that_are_tuples():
    with pytest.raises(ValueError, match=r"  pair/0  \(8, 4\) float32 of OfTuples"):
        axes_from_linen(OfTuples(), X)
    axes = MatrixAxes(0, 1)
    found = axes_from_linen(OfTuples(), X, others={"pair/0": axes})
    assert found == {"pair": (axes, None)}


class LinenScale(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("scale_w", nn.initializers.zeros, (8, 4))


class NNXScale(nnx.Module):
    def __init__(self):
        self.scale_w = nnx.Param(jnp.ones((8, 4)))


@pytest.mark.parametrize(
    "of",
    [
        lambda **options: axes_from_linen(LinenScale(), X, **options),
        lambda **options: axes_from_nnx(NNXScale(), **options),
    ],
    ids=["linen", "nnx"],
)
def test_others_win_over_names_of_vectors(of):
    assert of() == {"scale_w": None}
    axes = MatrixAxes(0, 1)
    assert of(others={"scale_w": axes}) == {"scale_w": axes}


def test_a_variable_of_none_has_no_leaves():
    model = nnx.Dict(layer=nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0)))
    model.nothing = nnx.Param(None)
    dense = {"kernel": MatrixAxes(0, 1)}
    assert axes_from_nnx(model) == {"layer": dense, "nothing": None}
    model.layer.kernel = nnx.Param(None)
    assert axes_from_nnx(model) == {"layer": {"kernel": None}, "nothing": None}
