"""Routing on real Flax models: every leaf of every model, and what `init` makes of it.

The models and their tables are in `routing_cases`.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_muon
from optax_muon import MatrixAxes
from tests import flax_models, routing_cases
from tests.routing_cases import CASES, OTHER_AXES, STACKED, named, table_of, under

ALL = CASES | OTHER_AXES
every_model = pytest.mark.parametrize("case", ALL.values(), ids=ALL)
MLP_AXES = nnx.to_pure_dict(
    jax.tree.map(
        lambda x: MatrixAxes(1, 0) if x.ndim == 2 else None, CASES["nnx mlp"].build()
    )
)
NNX_MODELS = {
    "mlp": (flax_models.NNXMLP, None),
    "mlp, tree": (flax_models.NNXMLP, MLP_AXES),
    "cnn": (flax_models.NNXCNN, None),
    "gpt, scan": (lambda rngs: flax_models.NNXGPT(rngs, 0), STACKED),
}


def of_optimizer(case, optimizer):
    return {path for path, row in case.expected.items() if row[0] == optimizer}


def arrays(tree):
    return {k for k, v in named(tree).items() if not isinstance(v, optax.MaskedNode)}


@every_model
def test_plan_has_every_leaf_and_no_other(case):
    assert table_of(optax_muon.plan(case.build(), case.matrix_axes)) == case.expected


@every_model
def test_arrays_are_planned_as_their_shapes(case):
    shapes = case.build()
    params = routing_cases.random_like(shapes)
    expected = optax_muon.plan(shapes, case.matrix_axes)
    assert optax_muon.plan(params, case.matrix_axes) == expected


@every_model
def test_init_keeps_momentum_at_muon_leaves_and_moments_at_adamw_leaves(case):
    params = routing_cases.random_like(case.build())
    state = optax_muon.muon(0.1, matrix_axes=case.matrix_axes).init(params)
    momentum = optax_muon.find_state(state).momentum
    # A masked variable of NNX is a MaskedNode in whole or in its value: same names.
    assert named(momentum).keys() == case.expected.keys()
    assert arrays(momentum) == of_optimizer(case, "muon")
    assert arrays(optax.tree.get(state, "mu")) == of_optimizer(case, "adamw")
    assert arrays(optax.tree.get(state, "nu")) == of_optimizer(case, "adamw")
    shapes = {path: leaf.shape for path, leaf in named(params).items()}
    for path in arrays(momentum):
        assert named(momentum)[path].shape == shapes[path]


@pytest.mark.parametrize("name", ["linen gpt, scan", "nnx gpt, scan"])
@pytest.mark.parametrize(
    "attempt",
    [optax_muon.plan, lambda params: optax_muon.muon(0.1).init(params)],
    ids=["plan", "init"],
)
def test_without_stacked_one_error_lists_every_undecidable_leaf(name, attempt):
    params = routing_cases.random_like(CASES[name].build())
    with pytest.raises(ValueError, match="cannot decide") as caught:
        attempt(params)
    _, *lines, remedy = str(caught.value).splitlines()
    listed = [re.fullmatch(r"  (\S+)  (\(.*\)) (\w+): (.+)", line) for line in lines]
    shapes = {path: str(leaf.shape) for path, leaf in named(params).items()}
    assert {match[1]: (match[2], match[3]) for match in listed} == {
        path: (shapes[path], "float32") for path in of_optimizer(CASES[name], "muon")
    }
    assert len(lines) == 6  # each once
    assert all(f"rank {match[2].count(',') + 1}" in match[4] for match in listed)
    assert "optax_muon.stacked('layers')" in remedy
    assert "nn.scan, nnx.scan or vmap" in remedy
    assert "MatrixAxes(fan_in=0, fan_out=(1, 2))" in remedy
    assert "optax_muon.plan(params, matrix_axes)" in remedy


@pytest.mark.parametrize(("build", "matrix_axes"), NNX_MODELS.values(), ids=NNX_MODELS)
def test_in_nnx_optimizer_the_routing_is_that_of_bare_arrays(build, matrix_axes):
    tx = optax_muon.muon(
        0.1, orthogonalizer=routing_cases.probe, matrix_axes=matrix_axes
    )
    model = routing_cases.random_model(build)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    gradients = routing_cases.random_like(nnx.state(model, nnx.Param), seed=1)
    bare = nnx.to_pure_dict(gradients)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    state = tx.init(params)
    for _ in range(2):
        optimizer.update(model, gradients)
        updates, state = tx.update(bare, state, params)
        params = optax.apply_updates(params, updates)
    # The same programs on the same numbers: not a bit may differ.
    after = named(nnx.state(model, nnx.Param))
    assert after.keys() == named(params).keys()
    for path, leaf in named(params).items():
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)


def test_a_rule_sees_the_same_names_in_init_and_update_of_nnx_optimizer():
    seen = []

    def rule(path, leaf):
        seen.append((path, leaf.shape))
        return optax_muon.flax_matrix_axes(path, leaf)

    model = routing_cases.random_model(flax_models.NNXMLP)
    tx = optax_muon.muon(0.1, orthogonalizer=routing_cases.probe, matrix_axes=rule)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    in_init = seen.copy()
    seen.clear()
    optimizer.update(model, nnx.state(model, nnx.Param))
    in_update = seen.copy()

    def names(calls):
        return {(optax_muon._rules.path_names(path), shape) for path, shape in calls}

    paths = {tuple(path.split("/")) for path in routing_cases.NNX_MLP}
    assert {path for path, _ in names(in_init)} == paths
    assert names(in_init) == names(in_update)


def test_parameters_of_a_whole_variable_collection():
    params = {"params": CASES["linen mlp"].build()}
    expected = under("params", routing_cases.LINEN_MLP)
    assert table_of(optax_muon.plan(params)) == expected


def test_state_that_is_no_parameter_is_refused_by_name():
    """The whole state of a model holds random keys, which no optimizer can take."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="cannot decide") as caught:
        optax_muon.plan(state)
    listed = [line.split()[0] for line in str(caught.value).splitlines()[1:-1]]
    assert listed == ["dropout/rngs/count", "dropout/rngs/key"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_parameters_are_routed_alike(dtype):
    case = CASES["linen cnn"]
    low = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), case.build())
    plan = optax_muon.plan(low)
    assert table_of(plan) == case.expected
    assert {leaf.dtype for leaf in plan.leaves} == {jnp.dtype(dtype)}
