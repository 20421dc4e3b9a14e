"""What a model does not explain: one error for all of it, and how to decide it."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from optax_muon import (
    MatrixAxes,
    UndecidedLeafError,
    axes_from_linen,
    axes_from_nnx,
    flax_matrix_axes,
    stacked,
)
from tests.architecture_tables import flat
from tests.architectures_nnx import stack

X = jax.ShapeDtypeStruct((2, 4), jnp.float32)
UNKNOWN = "made by no layer that says what it is"


class LinenExperts(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        w = self.param("w", nn.initializers.normal(), (5, 4, 4))
        temperature = self.param("temperature", nn.initializers.ones, (5, 1, 1))
        return jnp.einsum("bd,edf->bf", x, w * temperature), None


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x + self.param("pos_embed", nn.initializers.zeros, (2, 4)))
        layers = nn.scan(
            LinenExperts,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers(name="layers")(x, None)
        return x @ self.param("mixing", nn.initializers.normal(), (4, 6))


class NNXExperts(nnx.Module):
    def __init__(self, rngs):
        self.w = nnx.Param(rngs.normal((5, 4, 4)))
        self.parts = nnx.List([nnx.Param(rngs.normal((4, 2)))])


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((2, 4)))
        self.temperature = nnx.Param(jnp.ones((1, 5, 1)))
        self.layers = stack(NNXExperts, 3, rngs, axis=1)
        self.mixing = nnx.Param(rngs.normal((4, 6)))
        self.table = nnx.Param({"a": jnp.ones((2, 3))})


def nnx_model():
    return nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0)))


def of_linen(**options):
    return flat(axes_from_linen(LinenModel(), X, **options))


def of_nnx(**options):
    return flat(axes_from_nnx(nnx_model(), adamw="table", **options))


def complaints(attempt):
    """Path -> (shape, module, reason) of every leaf in the error."""
    with pytest.raises(ValueError, match=r"\Aaxes_from_(nnx|linen) cannot") as caught:
        attempt()
    _, *lines, remedy = str(caught.value).splitlines()
    assert "others=" in remedy
    assert "optax_muon.flax_matrix_axes" in remedy
    pattern = r"  (\S+)(?:  (\(.*?\)) float32)? of (\w+): (.+)"
    listed = [re.fullmatch(pattern, line).groups() for line in lines]
    assert len({name for name, *_ in listed}) == len(listed)
    return {name: tuple(rest) for name, *rest in listed}


def test_all_are_listed_at_once_in_linen():
    one = "; of one layer it is (5, 4, 4)"
    assert complaints(of_linen) == {
        "layers/w": ("(5, 3, 4, 4)", "LinenExperts", UNKNOWN + one),
        "mixing": ("(4, 6)", "LinenModel", UNKNOWN),
    }


def test_all_are_listed_at_once_in_nnx():
    no_array = "no array; keep each array in a variable of its own"
    assert complaints(lambda: axes_from_nnx(nnx_model())) == {
        "layers/parts/0": ("(4, 3, 2)", "NNXExperts", UNKNOWN),
        "layers/w": ("(5, 3, 4, 4)", "NNXExperts", UNKNOWN),
        "mixing": ("(4, 6)", "NNXModel", UNKNOWN),
        "table": (None, "NNXModel", no_array),
    }


W, MIXING = MatrixAxes(2, 3), MatrixAxes(0, 1)
LINEN = {
    "Dense_0/bias": None,
    "Dense_0/kernel": MatrixAxes(0, 1),
    "layers/temperature": None,
    "layers/w": W,
    "mixing": MIXING,
    "pos_embed": None,
}
NNX = {
    "dense/bias": None,
    "dense/kernel": MatrixAxes(0, 1),
    "layers/parts/0": None,
    "layers/w": W,
    "mixing": MIXING,
    "pos_embed": None,
    "table": None,
    "temperature": None,
}


def test_by_patterns():
    assert of_linen(others={"layers/w": W, "mixing": MIXING}) == LINEN
    parts = {"layers/parts/[0-9]+": None}
    assert of_nnx(others={"layers/w": W, "mixing": MIXING} | parts) == NNX


def test_by_classes():
    """Of all that is under a module of the class, but no more than is undecided."""
    assert of_linen(others={LinenExperts: W, "mixing": MIXING}) == LINEN
    others = {NNXExperts: None, "mixing": MIXING}
    assert of_nnx(others=others) == NNX | {"layers/w": None}


def test_by_modules():
    model = nnx_model()
    others = {model.layers: None, "mixing": MIXING}
    axes = axes_from_nnx(model, adamw="table", others=others)
    assert flat(axes) == NNX | {"layers/w": None}


def test_by_a_rule():
    """It sees the whole leaf, and is asked for what is undecided alone."""
    seen = {}

    def rule(path, leaf):
        seen[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf.shape
        return None if leaf.shape == (4, 3, 2) else MatrixAxes(-2, -1)

    negative = {"layers/w": MatrixAxes(-2, -1), "mixing": MatrixAxes(-2, -1)}
    assert of_linen(others=rule) == LINEN | negative
    assert seen == {"layers/w": (5, 3, 4, 4), "mixing": (4, 6)}
    assert of_nnx(others=rule) == NNX | negative


def test_by_the_default_rule():
    """What that cannot tell is listed, with its reason."""
    found = complaints(lambda: of_linen(others=flax_matrix_axes))
    assert found.keys() == {"layers/w"}
    assert "rank 4" in found["layers/w"][2]
    rule = stacked("layers", axis=1, inner=lambda path, leaf: MatrixAxes(-2, -1))
    assert of_linen(others=rule)["layers/w"] == MatrixAxes(2, 3)


def test_axes_that_do_not_fit_are_listed():
    others = {"layers/w": MatrixAxes(3, 4), "mixing": MatrixAxes(0, 0)}
    found = complaints(lambda: of_linen(others=others))
    assert {name: reason for name, (_, _, reason) in found.items()} == {
        name: f"{axes} does not fit a leaf of shape {shape}"
        for (name, axes), shape in zip(
            others.items(), [(5, 3, 4, 4), (4, 6)], strict=True
        )
    }


def test_several_that_disagree_are_listed():
    others = {LinenExperts: W, "w": None, "mixing": MIXING}
    found = complaints(lambda: of_linen(others=others))
    assert found["layers/w"][2].startswith("others says several things of it")


class AsWideAsDeep(nnx.Module):
    def __init__(self, rngs):
        self.layers = stack(lambda r: nnx.Linear(4, 4, use_bias=False, rngs=r), 4, rngs)


def test_stacks_that_lengths_do_not_tell():
    model = nnx.eval_shape(lambda: AsWideAsDeep(nnx.Rngs(0)))
    found = complaints(lambda: axes_from_nnx(model))
    reason = (
        "one layer's is (4, 4), so the stacked axes may be any of (0,) or (1,) or (2,)"
    )
    assert found == {"layers/kernel": ("(4, 4, 4)", "Linear", reason)}
    rule = stacked("layers")
    assert flat(axes_from_nnx(model, others=rule)) == {
        "layers/kernel": MatrixAxes(1, 2)
    }


def test_kernels_of_another_shape_than_configured():
    layer = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
    layer.kernel.set_value(jnp.ones((5, 4)))
    found = complaints(lambda: axes_from_nnx(layer))
    assert found == {"kernel": ("(5, 4)", "Linear", "one layer's would be (4, 5)")}
    turned = axes_from_nnx(layer, others={"kernel": MatrixAxes(1, 0)})
    assert turned["kernel"] == MatrixAxes(1, 0)


class Shared(nnx.Module):
    def __init__(self, rngs, *layers):
        self.layers = nnx.List(layers)
        for layer in layers[1:]:
            layer.kernel = layers[0].kernel


def test_layers_that_share_a_kernel():
    rngs = nnx.Rngs(0)
    tied = nnx.Einsum("bd,vd->bv", (7, 4), rngs=rngs)
    embed = nnx.Embed(7, 4, rngs=rngs)
    tied.kernel = embed.embedding
    model = nnx.List([tied, embed])
    assert flat(axes_from_nnx(model)) == {"0/kernel": None}
    same = Shared(rngs, *(nnx.Linear(4, 4, use_bias=False, rngs=rngs) for _ in "ab"))
    assert flat(axes_from_nnx(same)) == {"layers/0/kernel": MatrixAxes(0, 1)}
    turned = nnx.Einsum("bd,ed->be", (4, 4), rngs=rngs)
    other = Shared(rngs, nnx.Linear(4, 4, use_bias=False, rngs=rngs), turned)
    (_, _, reason) = complaints(lambda: axes_from_nnx(other))["layers/0/kernel"]
    assert reason.startswith("layers that share it say MatrixAxes(fan_in=(0,)")
    assert "or MatrixAxes(fan_in=(1,)" in reason


def test_an_undecided_leaf_of_a_rule_keeps_its_reason():
    def rule(path, leaf):
        raise UndecidedLeafError("not today")

    assert {
        reason for *_, reason in complaints(lambda: of_linen(others=rule)).values()
    } == {"not today"}
