"""Hyperball: matrices stay on their spheres, and zeros have none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from optax_muon import MatrixAxes, Svd
from tests.followed import ATOL, AXES, LR, assert_follows, draw, reference

pytestmark = pytest.mark.usefixtures("x64")


class TestHyperball:
    def test_ten_steps(self):
        tx = optax_muon.muon_hyperball(LR, orthogonalizer=Svd(), matrix_axes=AXES)
        assert_follows(tx, reference("muonh"))

    def test_a_scale_by_shape_has_no_effect(self):
        parts = optax_muon.scale_by_muon(
            0.95,
            momentum_form="heavy_ball",
            orthogonalizer=Svd(),
            scale="sqrt_max",
            matrix_axes=AXES,
        )
        tx = optax.chain(parts, optax_muon.step_on_hyperball(LR, matrix_axes=AXES))
        assert_follows(tx, reference("muonh"))

    def test_without_a_step_weights_return_to_their_sphere(self):
        w = draw(0)["wide"]
        tx = optax_muon.step_on_hyperball(LR)
        update, _ = tx.update(jnp.zeros_like(w), tx.init(w), 1.5 * w)
        np.testing.assert_allclose(1.5 * w + update, w, atol=ATOL)

    def test_bfloat16_weights_do_not_drift(self):
        w = draw(0)["wide"].astype(jnp.bfloat16)
        tx = optax_muon.muon_hyperball(0.02)
        state, update = tx.init({"kernel": w}), jax.jit(tx.update)
        params, before = {"kernel": w}, np.linalg.norm(np.asarray(w, float))
        for seed in range(40):
            gradient = {"kernel": draw(seed)["wide"].astype(jnp.bfloat16)}
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        after = np.linalg.norm(np.asarray(params["kernel"], float))
        # One rounding of weights and updates, not forty: they do not add up.
        assert after == pytest.approx(before, rel=2 * float(jnp.finfo("bfloat16").eps))

    @pytest.mark.parametrize("jit", [False, True])
    def test_matrices_of_zeros_are_named(self, jit):
        params = {
            "up": {"kernel": jnp.ones((2, 3, 4)).at[1].set(0)},
            "down": {"kernel": jnp.ones((2, 4, 3))},
        }
        tx = optax_muon.step_on_hyperball(LR, matrix_axes=MatrixAxes(1, 2))
        init = jax.jit(tx.init) if jit else tx.init

        def wait():
            jax.block_until_ready(init(params))
            jax.effects_barrier()

        with pytest.raises((ValueError, RuntimeError), match="up/kernel: 1 of 2"):
            wait()

    def test_a_state_for_other_axes_is_refused(self):
        """One sphere for all heads, or one for each: they would broadcast."""
        w = jnp.ones((6, 2, 3))
        together = optax_muon.step_on_hyperball(LR, matrix_axes=MatrixAxes(0, (1, 2)))
        each = optax_muon.step_on_hyperball(LR, matrix_axes=MatrixAxes(0, 2))
        for one, other in ((together, each), (each, together)):
            with pytest.raises(ValueError, match="step_on_hyperball got gradients"):
                one.update(w, other.init(w), w)

    def test_params_are_needed(self):
        tx, w = optax_muon.step_on_hyperball(LR), jnp.ones((2, 3))
        with pytest.raises(ValueError, match="pass params"):
            tx.update(w, tx.init(w))
