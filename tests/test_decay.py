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


PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
TAKE_MASKS = {
    "muon": lambda mask: optax_muon.muon(0.1, weight_decay_mask=mask),
    "speedrun": lambda mask: optax_muon.speedrun(0.1, weight_decay_mask=mask),
    "like_optax": lambda mask: optax_muon.like_optax(0.1, weight_decay_mask=mask),
    "add": lambda mask: optax_muon.add_weight_decay(0.1, mask=mask),
    "independent": lambda mask: optax_muon.add_independent_weight_decay(0.1, mask=mask),
}


@pytest.mark.parametrize("make", TAKE_MASKS.values(), ids=TAKE_MASKS.keys())
class TestMasks:
    @pytest.mark.parametrize(
        "mask",
        [5, 0, 1.5, jnp.array(False), {"kernel": np.ones(2, bool), "bias": 1}],
    )
    def test_numbers_and_arrays(self, make, mask):
        with pytest.raises(ValueError, match=r"mask=[\s\S]*None, a tree.*static_args"):
            make(mask)
        with pytest.raises(ValueError, match=r"mask\(params\)=[\s\S]*static_args"):
            make(lambda params: mask).init(PARAMS)

    @pytest.mark.parametrize("mask", [True, np.False_])
    def test_one_bool_for_all(self, make, mask):
        """As a function of parameters is read that is called with a step count."""
        with pytest.raises(ValueError, match=r"mask=.*no bool alone.*static_args"):
            make(mask)
        make(lambda params: mask).init(PARAMS)

    @pytest.mark.parametrize("mask", ["no", {"kernel": "no"}, bool])
    def test_other_things(self, make, mask):
        with pytest.raises(TypeError, match=r"mask=.*must be None, a tree.*it holds"):
            make(mask)

    @pytest.mark.parametrize("mask", [{"kernel": True}, {"kernels": True}, [True]])
    def test_trees_that_do_not_fit(self, make, mask):
        with pytest.raises(ValueError, match=r"mask gives .* does not fit the param"):
            make(mask).init(PARAMS)
        with pytest.raises(ValueError, match=r"mask gives .* does not fit the param"):
            make(lambda params: mask).init(PARAMS)

    @pytest.mark.parametrize(
        "mask",
        [None, {"kernel": np.True_, "bias": False}, {"kernel": False, "bias": True}],
    )
    def test_bools(self, make, mask):
        tx = make(mask)
        plain, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        tx = make(lambda params: mask if mask is not None else True)
        of_function, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        jax.tree.map(np.testing.assert_array_equal, plain, of_function)


def test_a_mask_that_is_taken_for_a_schedule():
    """It was, and the bool that it gave switched all weight decay off."""

    def mask(params):
        return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)

    options = {"weight_decay": 0.5, "weight_decay_mask": mask}
    with pytest.raises(ValueError, match=r"weight_decay_mask=.*static_args"):
        optax.inject_hyperparams(optax_muon.muon)(0.1, **options).init(PARAMS)
    static = optax.inject_hyperparams(optax_muon.muon, static_args="weight_decay_mask")
    tx = static(0.1, **options)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    update, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(update["kernel"], -0.05)
    np.testing.assert_allclose(update["bias"], 0)
