"""like_optax on meshes, against optax.contrib.muon on one device."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_muon
from optax_muon import like_optax
from optax_muon._optax_iteration import optax_iteration
from tests.optax_pair import Numbers, assert_alike

SPECS = {
    "up": ((8, 16), P("fsdp", "tensor")),
    "square": ((8, 8), P("fsdp")),
    "layers": ((4, 8, 16), P("tensor", "fsdp")),
    "query": ((8, 4, 4), P(None, "fsdp", "tensor")),
    "bias": ((16,), P("fsdp")),
}
SHARDED_NUMBERS = {
    "up": Numbers(),
    "square": Numbers(),
    "layers": Numbers(1, 2),
    "query": Numbers(0, (1, 2)),
    "bias": None,
}


@functools.cache
def sharded_case(preconditioning):
    """(arguments, parameters, two gradients, and what optax makes of them)."""
    rng = np.random.default_rng(0)
    trees = [
        {n: rng.normal(size=s).astype(np.float32) for n, (s, _) in SPECS.items()}
        for _ in range(3)
    ]
    for tree in trees:
        tree["square"] += 4 * np.eye(8, dtype=np.float32)  # far from singular
    options = {
        "learning_rate": 0.1,
        "weight_decay": 0.1,
        "adaptive": True,
        "preconditioning": preconditioning,
        "muon_weight_dimension_numbers": SHARDED_NUMBERS,
    }
    tx = optax.contrib.muon(**options)
    params, *gradients = trees
    state, expected = tx.init(params), []
    for gradient in gradients:
        step, state = jax.jit(tx.update)(gradient, state, params)
        expected.append(step)
    return options, params, gradients, expected


@pytest.mark.parametrize(
    ("kind", "preconditioning"),
    [(AxisType.Auto, "frobenius"), (AxisType.Explicit, "aol")],
)
def test_sharded_as_optax_unsharded(kind, preconditioning):
    options, params, gradients, expected = sharded_case(preconditioning)
    mesh = jax.make_mesh((2, 4), ("tensor", "fsdp"), axis_types=(kind, kind))
    where = {name: NamedSharding(mesh, spec) for name, (_, spec) in SPECS.items()}
    params, *gradients = (jax.device_put(x, where) for x in (params, *gradients))
    told = where if kind == AxisType.Auto else None
    tx = like_optax(**options, sharding=told)
    with jax.set_mesh(mesh):
        state, found = jax.jit(tx.init)(params), []
        for gradient in gradients:
            step, state = jax.jit(tx.update)(gradient, state, params)
            found.append(step)
    assert_alike(found, expected)
    momentum = optax_muon.find_state(state).momentum
    for name, spec in where.items():
        assert found[-1][name].sharding.is_equivalent_to(spec, len(SPECS[name][0]))
        if name != "bias":
            assert momentum[name].sharding.is_equivalent_to(spec, momentum[name].ndim)


def test_squares_keep_their_orientation_for_aol(rng):
    """It scales rows; elsewhere the one cut along other axes would be transposed."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    where = {"a": P("x"), "b": P(None, "x"), "c": P(None, "x")}
    where = {name: NamedSharding(mesh, spec) for name, spec in where.items()}
    gradients = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in where}
    iteration = optax_iteration((1.0, -0.5, 0.0), 1, 0.0, "aol")
    steps = []
    for sharding in (where, None):
        tx = optax_muon.scale_by_muon(orthogonalizer=iteration, sharding=sharding)
        steps.append(tx.update(gradients, tx.init(gradients))[0])
    assert_alike(*steps, tolerance=1e-6)  # one step hardly magnifies rounding


def test_inside_a_users_shard_map():
    options, params, gradients, expected = sharded_case("frobenius")
    mesh = jax.make_mesh((2, 4), ("tensor", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    specs = {name: spec for name, (_, spec) in SPECS.items()}

    def numbers(tree):  # sees whole leaves also where there are shards
        assert {name: x.shape for name, x in tree.items()} == {
            name: shape for name, (shape, _) in SPECS.items()
        }
        return SHARDED_NUMBERS

    options = options | {"muon_weight_dimension_numbers": numbers}
    tx = like_optax(**options, sharding=specs)

    def both(params, first, second):
        step, state = tx.update(first, tx.init(params), params)
        return step, tx.update(second, state, params)[0]

    inside = jax.shard_map(
        both, mesh=mesh, in_specs=(specs,) * 3, out_specs=(specs,) * 2
    )
    with jax.set_mesh(mesh):
        found = jax.jit(inside)(params, *gradients)
    assert_alike(list(found), expected)
