"""scale_by_shampoo on eight devices: the numbers of one, and where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import MatrixAxes, scale_by_shampoo
from tests.layouts import mesh_of

AXES = MatrixAxes(1, 2)


def draw(rng, shape, count=2):
    return [jnp.asarray(rng.normal(size=shape)) for _ in range(count)]


def run(tx, gradients):
    state, steps = tx.init(gradients[0]), []
    for gradient in gradients:
        step, state = tx.update(gradient, state)
        steps.append(step)
    return steps, state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_same_numbers_in_the_parameters_places(rng, kind, accumulate):
    mesh = mesh_of("fsdp4_tensor2", kind)
    where = NamedSharding(mesh, P(None, "fsdp", "tensor"))
    gradients = draw(rng, (2, 8, 8), 3)
    common = dict(accumulate=accumulate, matrix_axes=AXES)
    expected, last = run(scale_by_shampoo(**common), gradients)
    told = where if kind == AxisType.Auto else None
    tx = scale_by_shampoo(**common, sharding=told)
    with jax.set_mesh(mesh):
        steps, state = run(tx, [jax.device_put(g, where) for g in gradients])
    for step, other in zip(steps, expected, strict=True):
        assert step.sharding.is_equivalent_to(where, step.ndim)
        # Sums in another order, and roots of matrices of condition 1e4 at most.
        np.testing.assert_allclose(step, other, atol=1e-11)
    if accumulate:
        np.testing.assert_allclose(state.left, last.left, atol=1e-13)
        np.testing.assert_allclose(state.right, last.right, atol=1e-13)


def test_inside_a_shard_map_over_the_batch(rng):
    """Each device does its own experts."""
    mesh, spec = mesh_of("x8", AxisType.Auto), P("x")
    gradients = draw(rng, (8, 4, 4))
    plain, _ = run(scale_by_shampoo(matrix_axes=AXES), gradients)

    def inside(gradients):
        return run(scale_by_shampoo(matrix_axes=AXES, sharding=spec), gradients)[0]

    mapped = jax.shard_map(inside, mesh=mesh, in_specs=spec, out_specs=spec)
    for one, other in zip(jax.jit(mapped)(gradients), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)  # float32 roots


def test_inside_a_shard_map_parts_are_refused():
    mesh, spec = mesh_of("x8", AxisType.Auto), P("x")

    def inside(gradient):
        tx = scale_by_shampoo(accumulate=False, sharding=spec)
        return tx.update(gradient, tx.init(gradient))[0]

    mapped = jax.shard_map(inside, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(ValueError, match="scale_by_shampoo needs whole matrices"):
        mapped(jnp.ones((8, 8)))
