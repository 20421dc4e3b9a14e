"""Seed 002_79bb11b349089cdb: Keller Jordan's functions, and sqrt(fan-out / fan-in).

EMA by lerp, Nesterov by a second lerp, filters flattened to (out, in * h * w), five
steps of his quintic, the factor max(1, rows / cols)^0.5. torch stores (out, in), we
[in, out].

One difference is his: for filters he takes the factor from the last two axes of the
gradient, the window's height and width. Ours is that of the matrix that was
orthogonalized, and the references below are written so.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from tests import oracles

JORDAN = optax_muon.NewtonSchulz("keller_jordan")
# (out, in) or (out, in, h, w), torch's layouts.
SHAPES = [(4, 9), (9, 4), (6, 6), (8, 3, 3, 3), (16, 1, 2, 2)]


def to_jax(x: np.ndarray) -> jnp.ndarray:
    """(out, in, h, w) -> (h, w, in, out), Flax's layout; (out, in) -> (in, out)."""
    return jnp.asarray(np.moveaxis(x, (0, 1), (-1, -2)), jnp.float32)


def axes_of(shape: tuple[int, ...]) -> optax_muon.MatrixAxes:
    """Filters as in * h * w, merged in torch's order; it does not change the result."""
    axes = ((2, 0, 1), 3) if len(shape) == 4 else (0, 1)
    return optax_muon.MatrixAxes(*axes)


def reference_update(gradient, trace, beta=0.95):
    """His update in float64, torch's layout: returns the step and the trace."""
    trace = beta * trace + (1 - beta) * gradient
    ahead = beta * trace + (1 - beta) * gradient
    matrix = ahead.reshape(len(ahead), -1)
    rows = optax_muon.COEFFICIENTS["keller_jordan"].schedule(5)
    step = (
        oracles.chain(matrix, rows) * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
    )
    return step.reshape(gradient.shape), trace


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_updates_equal_the_reference(rng, shape):
    tx = optax_muon.scale_by_muon(
        0.95, orthogonalizer=JORDAN, scale="width", matrix_axes=axes_of(shape)
    )
    trace, state = np.zeros(shape), tx.init(to_jax(np.zeros(shape)))
    for _ in range(10):
        gradient = rng.normal(size=shape)
        step, trace = reference_update(gradient, trace)
        update, state = tx.update(to_jax(gradient), state)
        # float32 rounds at 1e-7; his polynomial's slope at 0, 485, amplifies it.
        np.testing.assert_allclose(update, to_jax(step), rtol=0, atol=1e-4)
        np.testing.assert_allclose(state.momentum, to_jax(trace), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_the_seeds_scale_is_mup(rng, shape):
    """W <- W - eta sqrt(fan-out / fan-in) NewtonSchulz(G): no momentum, no max."""
    fan_out, fan_in = shape
    gradient = rng.normal(size=shape)
    tx = optax.chain(
        optax_muon.scale_by_muon(0.0, orthogonalizer=JORDAN, scale="mup"),
        optax.scale_by_learning_rate(0.1),
    )
    update, _ = tx.update(to_jax(gradient), tx.init(to_jax(gradient)))
    rows = optax_muon.COEFFICIENTS["keller_jordan"].schedule(5)
    expected = -0.1 * np.sqrt(fan_out / fan_in) * oracles.chain(gradient, rows)
    np.testing.assert_allclose(update, to_jax(expected), atol=1e-5)  # 0.1 of the above
