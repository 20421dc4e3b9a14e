"""scale_by_soap at the ends of a dtype's range, and on zeros, NaN and 16 bits."""

import jax.numpy as jnp
import numpy as np
import pytest

from optax_muon import MatrixAxes, scale_by_soap
from tests.soap_steps import MU, OWN, directions, draw_leaf, run


def test_zeros(rng):
    """At first, in between, and of one matrix of a stack."""
    g = draw_leaf(rng, (2, 6, 4), count=4)
    half = g[2].at[0].set(0)
    zeros = jnp.zeros_like(g[0])
    tx = scale_by_soap(**OWN, frequency=3, matrix_axes=MatrixAxes(1, 2))
    updates, _ = run(tx, [zeros, zeros, zeros, zeros, g[0], zeros, g[1]])
    assert not np.any(updates[:4])
    assert all(np.isfinite(update).all() for update in updates)
    assert all(update.any() for update in updates[4:])
    updates, _ = run(tx, [half, half, g[3].at[0].set(0)])
    for update in updates:
        assert not update[0].any()
        assert np.isfinite(update).all()
        assert update[1].any()


def test_no_epsilon(rng):
    g = draw_leaf(rng, count=2)
    zeros = jnp.zeros_like(g[0])
    tx = scale_by_soap(**{**OWN, "eps": 0.0}, frequency=3)
    updates, _ = run(tx, [zeros, zeros, g[0], zeros, g[1]])
    assert np.isfinite(updates).all()
    updates, _ = run(tx, [g[0], zeros])  # V is 0, U is not
    np.testing.assert_allclose(updates[1], MU**2 * (1 - MU) * g[0], rtol=1e-4)


@pytest.mark.parametrize("size", [2.0**-50, 2.0**50])
def test_without_epsilon_no_unit_matters(rng, size):
    gradients = draw_leaf(rng)
    tx = scale_by_soap(**{**OWN, "eps": 0.0}, frequency=3)
    updates, _ = run(tx, gradients)
    scaled, _ = run(tx, [g * size for g in gradients])
    for one, other in zip(updates, scaled, strict=True):
        # A power of two rounds nothing, but for LAPACK's own scaling.
        np.testing.assert_allclose(other, one * size, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("size", [1e-15, 1e-25, 1e-30])
def test_gradients_far_below_epsilon(rng, size):
    """The update is U, whether or not squares underflow."""
    gradients = [g * size for g in draw_leaf(rng)]
    updates, _ = run(scale_by_soap(**OWN, frequency=3), gradients)
    for update, u in zip(updates, directions(gradients), strict=True):
        # Two rotations in float32; sqrt(V) / eps is up to 1e-6.
        np.testing.assert_allclose(update, u, rtol=0, atol=1e-5 * size)


def test_what_underflows_is_forgotten(rng):
    """Statistics of nothing, then gradients of size 1."""
    gradients = draw_leaf(rng)
    tiny = [g * 1e-30 for g in gradients[:4]]
    updates, states = run(scale_by_soap(**OWN, frequency=3), tiny + gradients)
    assert not states[4].left.any()
    bases = np.asarray(states[-1].left_basis[0])
    np.testing.assert_allclose(bases.T @ bases, np.eye(6), atol=1e-6)
    assert np.isfinite(updates[-1]).all()


@pytest.mark.parametrize("first", [True, False])
def test_overflow_is_not_silent(rng, first):
    """The update that overflows the statistics is NaN already, of that matrix."""
    g = draw_leaf(rng, (2, 6, 4), count=2)
    tx = scale_by_soap(**OWN, frequency=3, matrix_axes=MatrixAxes(1, 2))
    huge = g[1].at[0].multiply(1e25)
    updates, _ = run(tx, [huge, g[0]] if first else [g[0], huge])
    for update in updates[0 if first else 1 :]:
        assert np.isnan(update[0]).all()
        assert np.isfinite(update[1]).all()
    large = g[1].at[0].multiply(1e15)
    assert np.isfinite(run(tx, [g[0], large, g[0]])[0]).all()


def test_nan_stays_in_its_matrix(rng):
    g = draw_leaf(rng, (2, 6, 4), count=5)
    tx = scale_by_soap(**OWN, frequency=3, matrix_axes=MatrixAxes(1, 2))
    clean, _ = run(tx, g)
    g[1] = g[1].at[0, 2, 2].set(jnp.nan)
    for t, (update, other) in enumerate(zip(run(tx, g)[0], clean, strict=True)):
        assert np.isnan(update[0]).all() == (t > 0)
        np.testing.assert_array_equal(update[1], other[1])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bits(rng, dtype):
    """Computed in float32, also where P alone would overflow float16."""
    gradients = [g.astype(dtype) for g in draw_leaf(rng)]
    gradients[1] = jnp.zeros_like(gradients[1])  # V is 0, so that P = U / eps
    tx = scale_by_soap(**OWN, frequency=3, momentum_dtype=jnp.float32)
    updates, states = run(tx, gradients)
    wide, _ = run(tx, [g.astype(jnp.float32) for g in gradients])
    assert states[-1].left.dtype == jnp.float32
    for update, other in zip(updates, wide, strict=True):
        assert update.dtype == dtype
        # One rounding of the result, and in float16 below its normal numbers.
        np.testing.assert_allclose(
            update.astype(jnp.float32), other, rtol=jnp.finfo(dtype).eps, atol=1e-7
        )
