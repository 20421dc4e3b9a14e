"""Parameters that no layer explains: their stacks, their names and what is no array."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from optax_muon import (
    MatrixAxes,
    axes_from_equinox,
    axes_from_linen,
    axes_from_nnx,
    flax_matrix_axes,
    stacked,
)

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


def test_others_with_patterns_that_match_nothing():
    rule = stacked("layer", inner=lambda path, leaf: MatrixAxes(0, 1))
    with pytest.raises(
        ValueError, match=r"cannot[\s\S]*others has a pattern .*'layer'.*'layers/w'"
    ):
        axes_from_linen(Scanned(), X, others=rule)
    rule = stacked("layers", inner=rule)
    with pytest.raises(ValueError, match=r"axes_from_linen: others has a pattern"):
        axes_from_linen(Scanned(), X, others=rule)


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


class LinenRaw(nn.Module):
    name_of_it: str

    @nn.compact
    def __call__(self, x):
        return x @ self.param(self.name_of_it, nn.initializers.zeros, (8, 4))


class NNXRaw(nnx.Module):
    def __init__(self, name):
        setattr(self, name, nnx.Param(jnp.ones((8, 4))))


class EquinoxRaw(eqx.Module):
    bias: jax.Array
    head: jax.Array
    pos: jax.Array


@pytest.mark.parametrize("name", ["scale", "scale_w", "kernel_bias", "beta_proj"])
@pytest.mark.parametrize(
    "of",
    [
        lambda name, **options: axes_from_linen(LinenRaw(name), X, **options),
        lambda name, **options: axes_from_nnx(NNXRaw(name), **options),
    ],
    ids=["linen", "nnx"],
)
def test_names_of_vectors_do_not_explain_matrices(of, name):
    with pytest.raises(ValueError, match=rf"  {name}  \(8, 4\) .* made by no layer"):
        of(name)
    axes = MatrixAxes(0, 1)
    assert of(name, others={name: axes}) == {name: axes}
    assert of(name, others={name: None}) == {name: None}


@pytest.mark.parametrize("around", ["head", "multi_head", "embedder"])
def test_names_of_modules_around_do_not_explain_parameters(around):
    model = nnx.Dict(**{around: NNXRaw("w")})
    with pytest.raises(ValueError, match=f"  {around}/w  "):
        axes_from_nnx(model)
    assert axes_from_nnx(model, adamw=around) == {around: {"w": None}}


@pytest.mark.parametrize("name", ["head", "lm_head", "multi_head", "logits"])
def test_names_of_heads_do_not_explain_matrices(name):
    """Until `others` decides them, by the default rule or otherwise."""
    with pytest.raises(ValueError, match=rf"  {name}  \(8, 4\) .* made by no layer"):
        axes_from_nnx(NNXRaw(name))
    with pytest.raises(ValueError, match=rf"  {name}  \(8, 4\) .* made by no layer"):
        axes_from_linen(LinenRaw(name), X)
    assert axes_from_nnx(NNXRaw(name), others=flax_matrix_axes) == {name: None}
    assert axes_from_linen(LinenRaw(name), X, others=flax_matrix_axes) == {name: None}


def test_choices_that_meet_nothing_are_told_with_what_is_undecided():
    with pytest.raises(ValueError, match=r"  w  \(8, 4\)[\s\S]*adamw: 'roter'"):
        axes_from_nnx(NNXRaw("w"), adamw="roter")


@pytest.mark.parametrize("name", ["pos_embedding", "pos", "patch_embed"])
def test_names_of_embeddings_do(name):
    """Tables of positions, as of vision transformers, are parameters of no layer."""
    assert axes_from_nnx(NNXRaw(name)) == {name: None}
    assert axes_from_linen(LinenRaw(name), X) == {name: None}


def test_fields_of_an_equinox_module():
    matrix = jnp.ones((4, 4))
    with pytest.raises(ValueError, match="cannot tell") as error:
        axes_from_equinox(EquinoxRaw(matrix, matrix, matrix))
    assert "  bias  (4, 4)" in str(error.value)
    assert "  head  (4, 4)" in str(error.value)
    assert "  pos  (4, 4)" not in str(error.value)


def test_a_variable_of_none_has_no_leaves():
    model = nnx.Dict(layer=nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0)))
    model.nothing = nnx.Param(None)
    dense = {"kernel": MatrixAxes(0, 1)}
    assert axes_from_nnx(model) == {"layer": dense, "nothing": None}
    model.layer.kernel = nnx.Param(None)
    assert axes_from_nnx(model) == {"layer": {"kernel": None}, "nothing": None}
