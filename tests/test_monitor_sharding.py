"""monitor on eight devices: the records of one, whatever the mesh and the parts.

Both are float32 sums in another order, of singular values that 16 steps have found of
these small matrices: 1e-3 as in tests/test_singular_values.py.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import Svd, monitor, muon, read_records
from tests.layouts import mesh_of
from tests.test_statistics import AXES, SPECS, draw

MESH = "fsdp4_tensor2"


def two_steps(tx, params, *gradients):
    """In a loop, whose carry must keep its types: one measurement is compiled."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)

    def body(state, gradient):
        return tx.update(gradient, state, params)[1], None

    return read_records(jax.lax.scan(body, tx.init(params), stacked)[0])


def watched(sharding):
    where = {"matrix_axes": AXES, "sharding": sharding}
    return monitor(muon(0.1, orthogonalizer=Svd(), **where), every=2, **where)


def assert_records(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-3, err_msg=key)


@pytest.fixture(scope="module")
def trees():
    return [draw(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def expected(trees):
    return jax.jit(lambda *trees: two_steps(watched(None), *trees))(*trees)


@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.wide)]
)
def test_on_a_mesh(kind, trees, expected):
    mesh = mesh_of(MESH, kind)
    shardings = {key: NamedSharding(mesh, spec) for key, spec in SPECS.items()}
    placed = [jax.device_put(tree, shardings) for tree in trees]
    tx = watched(shardings if kind == AxisType.Auto else None)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda *trees: two_steps(tx, *trees))(*placed)
    assert_records(found, expected)


def test_inside_a_users_shard_map(trees, expected):
    mesh, tx = mesh_of(MESH, AxisType.Auto), watched(SPECS)
    # Experts lie on the devices along "tensor"; all else is the same everywhere.
    specs = {key: P("tensor") if "experts" in key else P() for key in expected}
    inside = jax.shard_map(
        lambda *trees: two_steps(tx, *trees),
        mesh=mesh,
        in_specs=(SPECS,) * 3,
        out_specs=specs,
    )
    assert_records(jax.jit(inside)(*trees), expected)


def test_the_previous_update_lies_as_the_parameters_do(trees):
    """Also where `init` is compiled, on a mesh for which the compiler chooses."""
    mesh = mesh_of(MESH, AxisType.Auto)
    shardings = {key: NamedSharding(mesh, spec) for key, spec in SPECS.items()}
    placed = jax.device_put(trees[0], shardings)
    state = jax.jit(watched(shardings).init)(placed)
    for key, leaf in state.previous.items():
        assert leaf.sharding.is_equivalent_to(shardings[key], leaf.ndim), key


def test_no_matrix_moves():
    """All collectives of a measurement are sums, of fewer numbers than a matrix has."""
    mesh = mesh_of(MESH, AxisType.Auto)
    sharding = NamedSharding(mesh, P("fsdp", "tensor"))
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=sharding)
    tx = monitor(optax.sgd(0.1), every=1, sharding=sharding)
    state = jax.jit(tx.init).lower(x).compile().output_shardings
    shapes = jax.eval_shape(tx.init, x)
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        state,
    )
    text = jax.jit(tx.update).lower(x, state, x).compile().as_text()
    found = re.findall(r"= (.*?) (all-\S+?|reduce-scatter|collective-\S+?)\(", text)
    assert found
    for type_, kind in found:
        assert kind in ("all-reduce", "all-reduce-start")
        for dims in re.findall(r"\[([\d,]*)\]", type_):
            assert np.prod([int(n) for n in dims.split(",") if n]) <= 128
