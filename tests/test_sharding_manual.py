"""Updates inside a user's own jax.shard_map, over all mesh axes or some of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import (
    KeepOut,
    MatrixAxes,
    NewtonSchulz,
    Qdwh,
    muon,
    normalize_neurons,
    orthogonalize,
    plan,
    route,
    scale_by_lmo,
    scale_by_muon,
)
from optax_muon._mesh_axes import described
from tests.layouts import CASES, axes_of, mesh_of, on_mesh
from tests.wide import wide_unless

KELLER = NewtonSchulz("keller_jordan")


def specs_of(case):
    return {name: leaf.spec for name, leaf in case.leaves.items()}


def shardings_on(mesh, specs):
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def close(tree, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), tree, other)


UNCHECKED = ("copies", "replicated", "experts and rows")


@pytest.mark.parametrize(
    ("name", "check_vma"),
    wide_unless(
        lambda case: case[0] in UNCHECKED or "mixed" in case[0],
        [*((name, True) for name in CASES), *((name, False) for name in UNCHECKED)],
    ),
)
def test_over_all_axes(name, check_vma):
    case = CASES[name]
    mesh, specs, axes = mesh_of(case.mesh, AxisType.Auto), specs_of(case), axes_of(case)
    gradients = on_mesh(case, mesh, 0)
    tx = scale_by_muon(orthogonalizer=KELLER, matrix_axes=axes, sharding=specs)

    def update(g):
        steps, state = tx.update(g, tx.init(g))
        return steps, state.momentum

    inside = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(specs,),
        out_specs=(specs, specs),
        check_vma=check_vma,
    )
    found = jax.jit(inside)(gradients)
    alone = scale_by_muon(orthogonalizer=KELLER, matrix_axes=axes)
    gradients = jax.tree.map(np.asarray, gradients)
    steps, state = alone.update(gradients, alone.init(gradients))
    close(found, (steps, state.momentum), atol=case.tolerance)


def test_over_one_axis_with_the_others_automatic():
    """As data-parallel loops do it: gradients averaged by hand, shards by compiler."""
    case = CASES["copies"]
    mesh, specs, axes = mesh_of(case.mesh, AxisType.Auto), specs_of(case), axes_of(case)
    gradients = on_mesh(case, mesh, 0)
    tx = scale_by_muon(
        orthogonalizer=KELLER, matrix_axes=axes, sharding=shardings_on(mesh, specs)
    )

    def update(g):
        g = jax.lax.pmean(g, "data")
        return tx.update(g, tx.init(g))[0]

    inside = jax.shard_map(
        update, mesh=mesh, in_specs=P(), out_specs=P(), axis_names={"data"}
    )
    with jax.set_mesh(mesh):
        steps = jax.jit(inside)(gradients)
    alone = scale_by_muon(orthogonalizer=KELLER, matrix_axes=axes)
    gradients = jax.tree.map(np.asarray, gradients)
    close(steps, alone.update(gradients, alone.init(gradients))[0])


@pytest.mark.parametrize("orthogonalizer", [KELLER, Qdwh()], ids=["iterated", "exact"])
def test_whole_fans_and_norms(orthogonalizer):
    """Scale and neurons are those of whole matrices, not of a device's shards."""
    mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
    specs = {"up": P("fsdp", "tensor"), "down": P("tensor", "fsdp")}
    rng = np.random.default_rng(0)
    gradients = {
        "up": jnp.asarray(rng.normal(size=(16, 48)), jnp.float32),
        "down": jnp.asarray(rng.normal(size=(48, 16)), jnp.float32),
    }

    def optimizer(sharding):
        return muon(
            0.1,
            orthogonalizer=orthogonalizer,
            normalizer=normalize_neurons(),  # told what muon is told
            sharding=sharding,
        )

    def update(g):
        tx = optimizer(specs)
        return tx.update(g, tx.init(g), g)[0]

    inside = jax.shard_map(
        update, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False
    )
    alone = optimizer(None)
    close(
        jax.jit(inside)(gradients),
        alone.update(gradients, alone.init(gradients), gradients)[0],
    )


def test_copies_that_differ_are_an_error():
    mesh = mesh_of("data2_fsdp2_tensor2", AxisType.Auto)
    leaf = jnp.ones((2, 8, 8))

    def update(g, sharding):
        tx = scale_by_muon(sharding=sharding)
        return tx.update(g[0], tx.init(g[0]))[0][None]

    def inside(sharding):
        return jax.shard_map(
            lambda g: update(g, sharding),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P("data"),
        )(leaf)

    with pytest.raises(ValueError, match=r"differs along mesh axes \['data'\].*pmean"):
        inside(P())
    # Each side of "data" does its own work.
    assert inside(KeepOut("data", P())).shape == leaf.shape


def test_without_sharding_every_device_does_its_own():
    """An ensemble, say: nothing tells that there is a larger matrix."""
    mesh = mesh_of("x8", AxisType.Auto)
    members = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 6)), jnp.float32)
    tx = scale_by_muon(matrix_axes=MatrixAxes(-2, -1), orthogonalizer=KELLER)

    def update(g):
        return tx.update(g, tx.init(g))[0]

    inside = jax.shard_map(update, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    program = jax.jit(inside).lower(members).compile().as_text()
    assert "all-to-all" not in program
    assert "all-gather" not in program
    close(jax.jit(inside)(members), update(members))


def test_wrappers_of_optax():
    """Masks, accumulation, injected numbers and partitions keep what they keep."""
    mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
    shardings = {
        "dense": {
            "kernel": NamedSharding(mesh, P("fsdp", "tensor")),
            "bias": NamedSharding(mesh, P("tensor")),
        }
    }
    rng = np.random.default_rng(0)
    params = {"dense": {"kernel": rng.normal(size=(16, 32)), "bias": np.ones(32)}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    placed = jax.device_put(params, shardings)

    def optimizers(sharding):
        common = dict(orthogonalizer=KELLER, sharding=sharding)
        yield muon(0.1, **common)
        yield optax.MultiSteps(muon(0.1, **common), 2)
        yield optax.inject_hyperparams(muon)(0.1, **common)
        yield optax.masked(
            scale_by_muon(**common), {"dense": {"kernel": True, "bias": False}}
        )

    for sharded, plain in zip(optimizers(shardings), optimizers(None), strict=True):
        state = jax.jit(sharded.init)(placed)
        alone = plain.init(params)
        for _ in range(2):
            steps, state = jax.jit(sharded.update)(placed, state, placed)
            expected, alone = plain.update(params, alone, params)
        # Not compiled, momentum is rounded otherwise: 2^-24, which Keller Jordan's
        # rows magnify up to 485 times.
        close(steps, expected, atol=3e-5)
        kernel = steps["dense"]["kernel"]
        assert kernel.sharding.is_equivalent_to(shardings["dense"]["kernel"], 2)


def test_moments_lie_as_the_parameters_do():
    """Under jit the compiler would otherwise make them whole on every device."""
    mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
    specs = {"embed": P("fsdp"), "kernel": P(None, "tensor"), "bias": P("tensor")}
    params = {
        "embed": jnp.ones((8, 4)),
        "kernel": jnp.ones((4, 8)),
        "bias": jnp.ones(8),
    }
    placed = jax.device_put(params, shardings_on(mesh, specs))
    axes = {"embed": None, "kernel": MatrixAxes(), "bias": None}
    tx = muon(0.1, matrix_axes=axes, sharding=shardings_on(mesh, specs))
    state = jax.jit(tx.init)(placed)
    found = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = [name for name in specs if f"'{name}'" in jax.tree_util.keystr(path)]
        for name in names:
            where = NamedSharding(mesh, specs[name])
            assert leaf.sharding.is_equivalent_to(where, leaf.ndim), path
            found += 1
    assert found == 2 + 2 + 1  # Adam's two moments of two leaves, and one momentum


def test_rules_see_whole_leaves():
    """One channel a device is not depthwise: routing would change with the mesh."""
    mesh = mesh_of("x8", AxisType.Auto)
    spec = {"conv": {"kernel": P(None, None, "x")}}
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 8, 32)), jnp.float32)
    gradients = {"conv": {"kernel": kernel}}

    def optimizer(sharding):
        return muon(0.1, orthogonalizer=NewtonSchulz("cubic"), sharding=sharding)

    def update(g):
        tx = optimizer(spec)
        return tx.update(g, tx.init(g), g)[0]

    inside = jax.shard_map(update, mesh=mesh, in_specs=(spec,), out_specs=spec)
    alone = optimizer(None)
    expected, _ = alone.update(gradients, alone.init(gradients), gradients)
    close(jax.jit(inside)(gradients), expected, atol=1e-5)


def test_mesh_axes_may_have_any_names():
    names = ("own", "row 0")
    mesh = jax.make_mesh((4, 2), names, axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P(*names))
    gradient = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    tx = scale_by_muon(orthogonalizer=KELLER, sharding=sharding)
    placed = jax.device_put(gradient, sharding)
    step, _ = jax.jit(lambda g: tx.update(g, tx.init(g)))(placed)
    alone = scale_by_muon(orthogonalizer=KELLER)
    expected, _ = jax.jit(lambda g: alone.update(g, alone.init(g)))(gradient)
    close(step, expected)


@pytest.mark.parametrize(
    ("shape", "spec", "columns"),
    [
        ((16, 32), P("fsdp"), ""),
        ((64, 1024), P("fsdp"), "2 of fsdp"),
        ((64, 1024), P(None, "fsdp"), "2 of fsdp"),
        ((64, 1024), P(), "2 of fsdp"),
    ],
)
def test_an_ensemble_mapped_over_an_explicit_axis(shape, spec, columns):
    """`KeepOut` leaves an axis to vmap that no leaf is cut over."""
    mesh = jax.make_mesh(
        (2, 4), ("ensemble", "fsdp"), axis_types=(AxisType.Explicit,) * 2
    )
    rng = np.random.default_rng(0)
    members = {
        name: jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32) for name in "ab"
    }
    cubic = NewtonSchulz("cubic", steps=2)  # rounding hardly grows
    tx = scale_by_muon(orthogonalizer=cubic, sharding=KeepOut("ensemble"))
    alone = scale_by_muon(orthogonalizer=cubic)

    def update(tx):
        return jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))[0]))

    with jax.set_mesh(mesh):
        one = {
            name: jax.ShapeDtypeStruct(
                shape, "float32", sharding=NamedSharding(mesh, spec)
            )
            for name in "ab"
        }
        kept = KeepOut("ensemble")
        [bucket] = plan(one, sharding=kept, orthogonalizer=cubic).buckets
        assert described(bucket.division.column_axes) == columns
        where = NamedSharding(mesh, P("ensemble", *spec))
        found = update(tx)(jax.device_put(members, where))
    close(found, update(alone)(members))


def test_parts_for_all_other_leaves_take_the_sharding():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    table = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    params, specs = {"embedding": table}, {"embedding": P(None, "x")}

    def update(p, sharding):
        tx = route(optax.identity(), scale_by_lmo(), sharding=sharding)
        return tx.update(p, tx.init(p), p)[0]

    with jax.set_mesh(mesh):
        inside = jax.shard_map(
            partial(update, sharding=specs), in_specs=(specs,), out_specs=specs
        )
        found = jax.jit(inside)(params)
    close(found, update(params, None), atol=1e-5)  # of steps of up to 119


def test_qdwh_says_what_it_needs():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype(np.float32)

    def inside(**kwargs):
        mapped = jax.shard_map(
            partial(orthogonalize, orthogonalizer=Qdwh()),
            mesh=mesh,
            in_specs=P("x"),
            out_specs=P("x"),
            **kwargs,
        )
        return jax.jit(mapped)(x)

    with pytest.raises(TypeError, match=r"Qdwh\(\) cannot run on .*check_vma=False"):
        inside()
    # Both orders of float32 sums, of entries below 1.
    np.testing.assert_allclose(
        inside(check_vma=False), orthogonalize(x, Qdwh()), atol=1e-6
    )
