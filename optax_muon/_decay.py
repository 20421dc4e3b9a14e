"""Decoupled weight decay, plain and cautious."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks


def add_weight_decay(
    weight_decay: _checks.ScalarOrSchedule,
    *,
    cautious: bool = False,
    mask: Any = None,
) -> optax.GradientTransformation:
    """update + weight_decay * w, to be chained before the learning rate.

    Args:
      weight_decay: a float, a scalar array, or a schedule of the step.
      cautious: decay an entry only where update and weight agree in sign, that is,
        where the step shrinks it anyway (Cautious Weight Decay, arXiv 2510.12402).
      mask: a tree of bools (or prefix) like the parameters, or a function that gives
        one; False leaves a leaf without decay.
    """
    _checks.check_scalar("weight_decay", weight_decay, low=0.0)
    _checks.check_bool("cautious", cautious)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        decay = optax.identity()  # of the same state, but `update` needs no params
    else:
        decay = (_cautious if cautious else optax.add_decayed_weights)(weight_decay)
    return decay if mask is None else optax.masked(decay, mask)


def _cautious(
    weight_decay: _checks.ScalarOrSchedule,
) -> optax.GradientTransformation:
    plain = optax.add_decayed_weights(weight_decay)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "Cautious weight decay compares updates with weights; pass "
                "params to update(updates, state, params)."
            )
        shrinking = jax.tree.map(
            lambda u, w: jnp.where(jnp.sign(u) * jnp.sign(w) > 0, w, 0), updates, params
        )
        return plain.update(updates, state, shrinking)

    return optax.GradientTransformation(plain.init, update)
