"""Weight decay in its forms, against references of ten steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from optax_muon import Svd
from tests import references
from tests.followed import ATOL, LEAVES, LR, assert_follows

pytestmark = pytest.mark.usefixtures("x64")


class TestDecay:
    @pytest.mark.parametrize("cautious", [False, True])
    @pytest.mark.parametrize("form", ["decoupled", "independent", "lr_squared"])
    @pytest.mark.parametrize("scheduled", [False, True])
    def test_forms(self, form, cautious, scheduled):
        def rate(t):
            return LR / (1 + t) if scheduled else LR

        tx = optax_muon.muon(
            rate if scheduled else LR,
            momentum=0.95,
            orthogonalizer=Svd(),
            scale=None,
            weight_decay=0.3,
            weight_decay_form=form,
            cautious=cautious,
        )
        expected = functools.partial(
            references.decayed, lr=rate, form=form, decay=0.3, cautious=cautious
        )
        assert_follows(tx, expected, {"wide": LEAVES["wide"]})  # entry by entry

    @pytest.mark.parametrize("cautious", [False, True])
    def test_entries_without_a_step_decay(self, cautious):
        """Cautious decay spares what grows, not what stands still (its eq. 1: >=)."""
        params = {"kernel": jnp.ones((3, 2))}
        tx = optax_muon.muon(0.1, weight_decay=0.5, cautious=cautious)
        still = jax.tree.map(jnp.zeros_like, params)
        update, _ = tx.update(still, tx.init(params), params)
        np.testing.assert_allclose(update["kernel"], -0.05)

    def test_adamw_gets_the_form_too(self):
        params = {"bias": jnp.ones(3)}
        tx = optax_muon.muon(0.0, weight_decay=0.5, weight_decay_form="independent")
        update, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(update["bias"], -0.5)

    @pytest.mark.parametrize("form", ["decoupled", "independent", "lr_squared"])
    def test_injected_numbers(self, form):
        tx = optax.inject_hyperparams(optax_muon.muon)(
            0.1, weight_decay=0.5, weight_decay_form=form
        )
        params = {"kernel": jnp.ones((3, 2))}
        update, _ = tx.update(params, tx.init(params), params)
        plain = optax_muon.muon(0.1, weight_decay=0.5, weight_decay_form=form)
        expected, _ = plain.update(params, plain.init(params), params)
        np.testing.assert_allclose(update["kernel"], expected["kernel"], atol=ATOL)

    def test_unknown_form(self):
        with pytest.raises(ValueError, match="weight_decay_form='l2'"):
            optax_muon.muon(0.1, weight_decay_form="l2")
