"""Seed 000_c96d5f54b1f7514b: the deep-ml Muon step with matrix preconditioning.

Heavy ball, the cubic X (3 I - X^T X) / 2, Frobenius normalisation, the factor
sqrt(max(rows, cols)), vectors as one column.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon


def reference_step(theta, gradient, trace, lr, momentum, steps):
    """The seed's equations in float64; returns the new theta and trace."""
    trace = momentum * trace + gradient
    matrix = trace[:, None] if trace.ndim == 1 else trace
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(steps):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return theta - lr * np.sqrt(max(matrix.shape)) * x.reshape(theta.shape), trace


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 30])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6), (7,), (1,), (1, 5), (5, 1)])
def test_equals_the_reference_over_several_updates(rng, shape, steps):
    axes = optax_muon.MatrixAxes(0, () if len(shape) == 1 else 1)
    tx = optax.chain(
        optax_muon.scale_by_muon(
            0.95,
            momentum_form="heavy_ball",
            nesterov=False,
            orthogonalizer=optax_muon.NewtonSchulz("cubic", steps),
            scale="sqrt_max",
            matrix_axes=axes,
        ),
        optax.scale_by_learning_rate(0.02),
    )
    theta = rng.normal(size=shape)
    params = jnp.asarray(theta, jnp.float32)
    trace, state = np.zeros(shape), tx.init(params)
    for _ in range(6):
        gradient = rng.normal(size=shape)
        theta, trace = reference_step(theta, gradient, trace, 0.02, 0.95, steps)
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        # float32 rounds entries of size 1 by 1e-7 each time: the seed's 1e-5 holds.
        np.testing.assert_allclose(params, theta, rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            optax_muon.find_state(state).momentum, trace, rtol=0, atol=1e-5
        )


def test_other_momentum_forms_differ(rng):
    """The EMA's trace is another one: the comparison above can tell."""
    gradient = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    traces = {}
    for form in ("ema", "heavy_ball"):
        tx = optax_muon.scale_by_muon(momentum_form=form)
        _, state = tx.update(gradient, tx.init(gradient))
        traces[form] = state.momentum
    np.testing.assert_allclose(traces["heavy_ball"], gradient)
    np.testing.assert_allclose(traces["ema"], 0.05 * gradient, rtol=1e-5)  # 1 - .95
