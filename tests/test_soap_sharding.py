"""scale_by_soap on eight devices: the same numbers, and where they lie.

Matrices are square, since rounding chooses the basis of a null space.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import MatrixAxes, scale_by_soap
from tests.layouts import mesh_of
from tests.soap_steps import OWN, draw_leaf, run
from tests.test_programs import compilations


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_same_numbers_in_the_parameters_places(rng, kind):
    mesh = mesh_of("fsdp4_tensor2", kind)
    where = NamedSharding(mesh, P(None, "fsdp", "tensor"))
    gradients = draw_leaf(rng, (2, 8, 8), 5, jnp.float64)
    common = dict(frequency=2, matrix_axes=MatrixAxes(1, 2))
    expected, states = run(scale_by_soap(**OWN, **common), gradients)
    told = where if kind == AxisType.Auto else None
    tx = scale_by_soap(**OWN, **common, sharding=told)
    update = jax.jit(tx.update)
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(jax.device_put(gradients[0], where))
        for t, gradient in enumerate(gradients):
            with compilations() as found:
                step, state = update(jax.device_put(gradient, where), state)
            # From where init puts statistics, the compiler may move them once.
            assert t < 2 or found == []
            for leaf in (step, state.momentum):
                assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
            # As ten steps on one device, but sums in another order.
            np.testing.assert_allclose(step, expected[t], atol=1e-11)
    np.testing.assert_allclose(state.left, states[-1].left, atol=1e-13)


def test_what_is_whole_is_brought_to_the_parameters_places(rng):
    mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
    where = NamedSharding(mesh, P("fsdp", "tensor"))
    (gradient,) = draw_leaf(rng, (8, 8), count=1)
    gradient = jax.device_put(gradient, NamedSharding(mesh, P()))
    tx = scale_by_soap(max_dim=1, sharding=where)  # momentum alone
    state = jax.jit(tx.init)(gradient)
    assert state.momentum.sharding.is_equivalent_to(where, 2)
    state = state.replace(momentum=jnp.zeros_like(gradient))
    step, state = jax.jit(tx.update)(gradient, state)
    assert state.momentum.sharding.is_equivalent_to(where, 2)
    assert step.sharding.is_equivalent_to(where, 2)


def test_explicit_statistics_stay_where_they_are_put(rng):
    mesh = mesh_of("fsdp4_tensor2", AxisType.Explicit)
    (gradient,) = draw_leaf(rng, (8, 8), count=1)
    tx = scale_by_soap(one_sided=True)
    with jax.set_mesh(mesh):
        gradient = jax.device_put(gradient, NamedSharding(mesh, P("fsdp", "tensor")))
        state = jax.jit(tx.init)(gradient)
        assert state.left.sharding.spec == P(None, None, None)
        left = jax.reshard(state.left, P(None, "fsdp", "tensor"))
        state = jax.eval_shape(tx.update, gradient, state.replace(left=left))[1]
    assert state.left.sharding.spec == P(None, "fsdp", "tensor")
    assert state.right.sharding.spec == P(None, None, None)


def test_inside_a_shard_map_over_the_batch(rng):
    """Each device does its own experts."""
    mesh, spec = mesh_of("x8", AxisType.Auto), P("x")
    gradients = draw_leaf(rng, (8, 4, 4), count=2)
    common = dict(matrix_axes=MatrixAxes(1, 2))
    plain, _ = run(scale_by_soap(**OWN, **common), gradients)

    def inside(gradients):
        tx = scale_by_soap(**OWN, **common, sharding=spec)
        return run(tx, gradients)[0]

    mapped = jax.shard_map(inside, mesh=mesh, in_specs=spec, out_specs=spec)
    for one, other in zip(jax.jit(mapped)(gradients), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)  # as ten steps


def test_inside_a_shard_map_parts_are_refused():
    mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
    specs = {"a": {"kernel": P("fsdp", "tensor")}, "b": P(None, "tensor"), "c": P()}
    params = {"a": {"kernel": jnp.ones((8, 8))}, "b": jnp.ones((4, 8))}
    params["c"] = jnp.ones((4, 4))

    def inside(params):
        return scale_by_soap(sharding=specs).init(params).momentum

    mapped = jax.shard_map(inside, mesh=mesh, in_specs=(specs,), out_specs=specs)
    message = (
        r"scale_by_soap needs whole matrices[^\n]*\n"
        r"  a/kernel  \(8, 8\) over \['fsdp', 'tensor'\]\n"
        r"  b  \(4, 8\) over \['tensor'\]\n"
        r"Call it outside"
    )
    with pytest.raises(ValueError, match=message):
        mapped(params)
