"""momentum_form="ema_debiased": the momentum of optax.contrib.muon."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mu", [0.0, 0.5, 0.95])
def test_directions_without_bias(rng, mu, nesterov):
    tx = optax_muon.scale_by_muon(
        mu,
        nesterov=nesterov,
        momentum_form="ema_debiased",
        orthogonalizer=lambda x: x,  # so that the update is the direction
        scale=None,
    )
    m, state = np.zeros((4, 6)), tx.init(jnp.zeros((4, 6)))
    for t in range(1, 6):
        g = rng.normal(size=(4, 6))
        m = mu * m + (1 - mu) * g
        d = m / (1 - mu**t)
        if nesterov:
            d = mu * m / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t)
        update, state = tx.update(jnp.asarray(g, jnp.float32), state)
        # 1 - 0.95 in float32 is off by 1e-6.
        np.testing.assert_allclose(update, d, rtol=0, atol=2e-6 * np.abs(d).max())


def test_that_form_needs_one_mu():
    with pytest.raises(ValueError, match=r"is a schedule, but .* 1 - mu\^t"):
        optax_muon.scale_by_muon(
            optax.constant_schedule(0.9), momentum_form="ema_debiased"
        )


def test_one_minus_mu_is_exact():
    """0.999 in float32 leaves 0.00099999: 1e-5 too little in every trace."""
    tx = optax_muon.scale_by_muon(0.999, momentum_form="ema_debiased")
    _, state = tx.update(jnp.eye(2), tx.init(jnp.eye(2)))
    np.testing.assert_allclose(state.momentum, 1e-3 * np.eye(2), rtol=1e-7)
