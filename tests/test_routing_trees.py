"""Axes as a tree, as a prefix of one, or as one `MatrixAxes`: matched by names."""

import flax.core
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import optax_muon
from optax_muon import MatrixAxes, plan
from tests.routing_cases import (
    CASES,
    LINEN_MLP,
    NNX_MLP,
    STACKED_GPT,
    adamw,
    complaints,
    muon,
    shaped,
    table_of,
)

MLP = CASES["linen mlp"].build()


def mlp_tree(kernel):
    return {
        "Dense_0": {"kernel": kernel, "bias": None},
        "Dense_1": {"kernel": kernel},
        "LayerNorm_0": None,
        "classifier": None,
    }


def test_a_tree_decides_every_leaf():
    assert table_of(plan(MLP, mlp_tree(MatrixAxes()))) == LINEN_MLP
    turned = table_of(plan(MLP, mlp_tree(MatrixAxes(fan_in=1, fan_out=0))))
    kernels = {**muon(9, 6, "Dense_0/kernel"), **muon(10, 9, "Dense_1/kernel")}
    assert turned == LINEN_MLP | kernels


@pytest.mark.parametrize("wrap", [flax.core.freeze, dict], ids=["frozen", "dict"])
@pytest.mark.parametrize("wrap_axes", [flax.core.freeze, dict], ids=["frozen", "dict"])
def test_a_tree_is_matched_by_names_whatever_its_dicts(wrap, wrap_axes):
    found = plan(wrap(MLP), wrap_axes(mlp_tree(MatrixAxes())))
    assert table_of(found) == LINEN_MLP


NNX_STATE = CASES["nnx mlp"].build()
NNX_AXES = jax.tree.map(
    lambda x: MatrixAxes() if x.ndim == 2 and x.shape[-1] != 4 else None, NNX_STATE
)


@pytest.mark.parametrize(
    "axes", [NNX_AXES, nnx.to_pure_dict(NNX_AXES)], ids=["nnx.State", "dict"]
)
def test_a_tree_for_an_nnx_model(axes):
    assert table_of(plan(NNX_STATE, axes)) == NNX_MLP
    assert table_of(plan(nnx.to_pure_dict(NNX_STATE), axes)) == NNX_MLP


def test_prefixes_stand_for_all_that_is_under_them():
    params = CASES["linen gpt, scan"].build()
    attention = {
        **{
            k: {"kernel": MatrixAxes(1, (2, 3)), "bias": None} for k in ("query", "key")
        },
        "value": {"kernel": MatrixAxes(-3, (-2, -1)), "bias": None},
        "out": {"kernel": MatrixAxes((1, 2), 3), "bias": None},
    }
    dense = {"kernel": MatrixAxes(1, 2), "bias": None}
    layers = {"attention": attention, "up": dense, "down": dense, "norm": None}
    axes = {"embed": None, "pos_embed": None, "lm_head": None, "layers": layers}
    assert table_of(plan(params, axes)) == STACKED_GPT
    nothing = {"embed": None, "pos_embed": None, "lm_head": None, "layers": None}
    assert table_of(plan(params, nothing)) == adamw(*STACKED_GPT)


def test_one_matrix_axes_stands_for_every_leaf():
    params = {"a": [shaped(3, 4), shaped(2, 3, 4)], "b": (shaped(4, 3),)}
    expected = {
        **muon(4, 3, "a/0"),
        **muon(4, 3, "a/1", batch=2),
        **muon(3, 4, "b/0"),
    }
    assert table_of(plan(params, MatrixAxes(-1, -2))) == expected
    assert table_of(plan(shaped(4), MatrixAxes(0, ()))) == muon(4, 1, "(root)")
    assert table_of(plan(shaped(4), MatrixAxes((), 0))) == muon(1, 4, "(root)")
    assert table_of(plan(shaped(), MatrixAxes((), ()))) == muon(1, 1, "(root)")


@pytest.mark.parametrize("params", [{}, [], None, {"a": {}}], ids=str)
def test_one_matrix_axes_for_no_leaf_at_all(params):
    assert table_of(plan(params, MatrixAxes())) == {}


def test_masked_leaves_need_no_axes_and_may_have_them():
    """Inside `optax.masked` a transformation sees one hole in the place of a layer."""
    params = {"a": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "c": jnp.ones((3, 2))}
    for axes_of_a in ({}, {"a": MatrixAxes()}, {"a": {"w": MatrixAxes(), "b": None}}):
        axes = {"c": MatrixAxes(), **axes_of_a}
        tx = optax.masked(
            optax_muon.scale_by_muon(orthogonalizer=lambda x: -x, matrix_axes=axes),
            {"a": False, "c": True},
        )
        updates, _ = tx.update(params, tx.init(params))
        assert float(updates["a"]["w"][0, 0]) == 1.0
        assert float(updates["c"][0, 0]) < 0


# --- refusals -----------------------------------------------------------------------


def test_a_tree_with_names_that_the_parameters_lack():
    axes = mlp_tree(MatrixAxes()) | {"Dens_1": None, "head": {"kernel": MatrixAxes()}}
    with pytest.raises(ValueError, match="which the parameters lack") as caught:
        plan(MLP, axes)
    assert "['Dens_1', 'head/kernel']" in str(caught.value)
    assert "tree (or tree prefix) of MatrixAxes | None" in str(caught.value)


def test_a_tree_without_entries_for_some_leaves():
    axes = mlp_tree(MatrixAxes())
    del axes["Dense_0"]["bias"], axes["classifier"]
    reason = "the tree matrix_axes has no entry for it"
    missing = ["Dense_0/bias", "classifier/bias", "classifier/kernel"]
    assert complaints(MLP, axes) == dict.fromkeys(missing, reason)
    assert complaints(MLP, {}) == dict.fromkeys(LINEN_MLP, reason)


@pytest.mark.parametrize(
    "axes",
    [MatrixAxes(0, 2), MatrixAxes(-3, 1), MatrixAxes(0, 0), MatrixAxes((0, 1), -1)],
    ids=["beyond", "before", "twice", "twice by another name"],
)
def test_axes_that_do_not_fit(axes):
    reason = f"{axes} does not fit a leaf of shape"
    found = complaints(MLP, mlp_tree(axes))
    assert found.keys() == {"Dense_0/kernel", "Dense_1/kernel"}
    assert found["Dense_0/kernel"] == f"{reason} (6, 9)"
    assert found["Dense_1/kernel"] == f"{reason} (9, 10)"
    assert complaints(shaped(6, 9), axes) == {"(root)": f"{reason} (6, 9)"}


@pytest.mark.parametrize("rubbish", [(0, 1), 0, "muon", MatrixAxes], ids=str)
def test_a_tree_that_holds_rubbish(rubbish):
    axes = mlp_tree(MatrixAxes()) | {"classifier": {"kernel": rubbish, "bias": None}}
    with pytest.raises(
        TypeError, match=r"neither MatrixAxes nor None.*classifier/kernel"
    ):
        plan(MLP, axes)


@pytest.mark.parametrize("cls", [MatrixAxes, optax_muon.NewtonSchulz, dict])
@pytest.mark.parametrize(
    "use", [plan, lambda p, axes: optax_muon.muon(0.1, matrix_axes=axes).init(p)]
)
def test_a_class_instead_of_an_instance(cls, use):
    with pytest.raises(
        TypeError, match=f"{cls.__name__}.* is a class; pass an instance"
    ):
        use(MLP, cls)
