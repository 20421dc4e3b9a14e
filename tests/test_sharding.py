"""Sharded updates: their collectives, their values, and where their results lie."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import (
    NewtonSchulz,
    Svd,
    find_state,
    muon,
    orthogonalize,
    scale_by_muon,
)
from tests.layouts import CASES, axes_of, mesh_of, on_mesh
from tests.wide import wide_unless

pytestmark = pytest.mark.usefixtures("benchmark_modules")
KELLER = NewtonSchulz("keller_jordan")


def updates(tx, case, mesh):
    """Two updates of a jitted transformation: (step, state, compiled program)."""
    params, first, second = (on_mesh(case, mesh, seed) for seed in range(3))
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        update = jax.jit(tx.update).lower(first, state).compile()
    _, state = update(first, state)
    step, state = update(second, state)
    return step, state, update


def unsharded(tx, case):
    """The same two updates on one device."""
    params, first, second = (
        jax.tree.map(np.asarray, on_mesh(case, mesh_of(case.mesh, AxisType.Auto), seed))
        for seed in range(3)
    )
    _, state = tx.update(first, tx.init(params))
    return tx.update(second, state)


@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.wide)]
)
@pytest.mark.parametrize("name", CASES)
def test_collectives_values_and_shardings(name, kind, capfd):
    import hlo

    case = CASES[name]
    mesh = mesh_of(case.mesh, kind)
    sharding = None
    if kind == AxisType.Auto:
        sharding = {
            name: NamedSharding(mesh, leaf.spec) for name, leaf in case.leaves.items()
        }
    tx = scale_by_muon(
        orthogonalizer=KELLER, matrix_axes=axes_of(case), sharding=sharding
    )
    step, state, program = updates(tx, case, mesh)

    found = hlo.Program(program.as_text())
    assert found.counts() == case.expected
    assert not any(one.in_loop for one in found.collectives())
    assert "rematerialization" not in capfd.readouterr().err

    plain = scale_by_muon(orthogonalizer=KELLER, matrix_axes=axes_of(case))
    step_1, state_1 = unsharded(plain, case)
    for tree, alone in ((step, step_1), (find_state(state).momentum, state_1.momentum)):
        for leaf_name, leaf in case.leaves.items():
            here = tree[leaf_name].sharding
            assert here.is_equivalent_to(
                NamedSharding(mesh, leaf.spec), len(leaf.shape)
            )
            np.testing.assert_allclose(
                tree[leaf_name], alone[leaf_name], atol=case.tolerance
            )


def test_the_compiler_says_when_it_gathers_all(capfd):
    """What is looked for above does come: of the same move, left to the compiler."""
    mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
    there = NamedSharding(mesh, P(("fsdp", "tensor")))
    x = jax.ShapeDtypeStruct(
        (8, 32, 64), "float32", sharding=NamedSharding(mesh, P(None, "fsdp", "tensor"))
    )
    jax.jit(lambda x: jax.lax.with_sharding_constraint(x, there)).lower(x).compile()
    assert "rematerialization" in capfd.readouterr().err


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["rows and columns", "copies"])
def test_a_whole_step_of_training_keeps_its_shardings(name, kind):
    """Parameters too, and AdamW's: no collective but those of the exchange."""
    import hlo

    case = CASES[name]
    mesh = mesh_of(case.mesh, kind)
    params, gradients = (on_mesh(case, mesh, seed) for seed in range(2))
    axes, specs = axes_of(case), {k: leaf.spec for k, leaf in case.leaves.items()}
    for tree in (params, gradients):
        tree["bias"] = jax.device_put(np.ones(16), NamedSharding(mesh, P("fsdp")))
    axes["bias"], specs["bias"] = None, P("fsdp")
    told = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    tx = muon(
        0.1,
        orthogonalizer=KELLER,
        matrix_axes=axes,
        sharding=told if kind == AxisType.Auto else None,
    )

    @jax.jit
    def step(gradients, params, state):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        program = step.lower(gradients, params, jax.jit(tx.init)(params)).compile()
        new, _ = program(gradients, params, jax.jit(tx.init)(params))
    assert hlo.Program(program.as_text()).counts() == case.expected
    for leaf_name, where in told.items():
        assert new[leaf_name].sharding.is_equivalent_to(where, new[leaf_name].ndim)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "spec", [P("x", "y"), P(None, "y", "x"), P("y"), P(None, ("x", "y"))], ids=str
)
def test_orthogonalize_alone(spec, kind):
    import hlo

    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    where = NamedSharding(mesh, spec)
    x = np.random.default_rng(0).normal(size=(8, 16, 24)).astype(np.float32)
    placed = jax.device_put(x, where)
    told = where if kind == AxisType.Auto else None
    for configuration in (KELLER, Svd()):
        function = jax.jit(lambda x, c=configuration: orthogonalize(x, c, told))
        program = function.lower(placed).compile()
        found = program(placed)
        assert found.sharding.is_equivalent_to(where, x.ndim)
        # Squares summed in another order: an ulp of 2^-24, which Keller Jordan's steps
        # magnify up to 485 times for small singular values, of which an entry sees a
        # part. (1.1e-6 was seen.)
        np.testing.assert_allclose(found, orthogonalize(x, configuration), atol=1e-5)
        collectives = hlo.Program(program.as_text())
        assert set(collectives.counts()) <= {"all-to-all", "all-gather"}
        assert not any(one.in_loop for one in collectives.collectives())
    with pytest.raises(ValueError, match=r"orthogonalize: .*\n.*axis 0 of length 3"):
        orthogonalize(x[:3], sharding=NamedSharding(mesh, P("x")))


@pytest.mark.parametrize("name", wide_unless(lambda name: "mixed" in name, CASES))
def test_a_users_function_sees_matrices_as_they_are(name):
    """Rows and columns in their order, wherever shards come from: exactly."""

    def numbered(x):
        i, j = (jax.numpy.arange(1.0, size + 1) for size in x.shape[-2:])
        return x * (i[:, None] + 1000 * j)

    case = CASES[name]
    mesh = mesh_of(case.mesh, AxisType.Auto)
    sharding = {
        name: NamedSharding(mesh, leaf.spec) for name, leaf in case.leaves.items()
    }
    results = [
        scale_by_muon(
            orthogonalizer=numbered, matrix_axes=axes_of(case), sharding=sharding
        )
        for sharding in (sharding, None)
    ]
    step, *_ = updates(results[0], case, mesh)
    alone, _ = unsharded(results[1], case)
    jax.tree.map(np.testing.assert_array_equal, step, alone)
