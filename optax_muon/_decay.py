"""Weight decay and the learning rate: the last stages, in three forms."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_muon import _checks
from optax_muon._trace import at_count

_MASKS = (
    "None, a tree of bools (or prefix, but no bool alone), or a function from the "
    "parameters to a tree of bools"
)
Stages = tuple[optax.GradientTransformation, optax.GradientTransformation]


def add_weight_decay(
    weight_decay: _checks.ScalarOrSchedule,
    *,
    cautious: bool = False,
    mask: Any = None,
) -> optax.GradientTransformation:
    """update + weight_decay * w, to be chained before the learning rate.

    That is decoupled decay (arXiv 1711.05101): W loses learning rate * decay of itself
    in each step.

    Args:
      weight_decay: a float, a scalar array, or a schedule of the step.
      cautious: decay an entry only where that does not work against the step, that is,
        unless update and weight have opposite signs (Cautious Weight Decay,
        arXiv 2510.12402, algorithm 1). Entries whose update is 0 decay.
      mask: a tree of bools (or prefix) like the parameters, or a function that gives
        one; False leaves a leaf without decay.

    Returns:
      A transformation whose `update` needs params, unless weight_decay is the float 0.
      Behind the learning rate, which flips the sign, it would make weights grow.

    Raises:
      ValueError, TypeError: bad arguments; no params in `update`.

    >>> import jax.numpy as jnp
    >>> tx, w = add_weight_decay(0.1, cautious=True), jnp.array([1.0, 1.0, 1.0])
    >>> print(tx.update(jnp.array([2.0, -2.0, 0.0]), tx.init(w), w)[0])
    [ 2.1 -2.   0.1]
    """
    return _decay(weight_decay, 1, cautious, mask)


def add_independent_weight_decay(
    weight_decay: _checks.ScalarOrSchedule,
    *,
    cautious: bool = False,
    mask: Any = None,
) -> optax.GradientTransformation:
    """update - weight_decay * w, to be chained after the learning rate.

    W loses that share of itself in each step, whatever the learning rate and its
    schedule (the first form of Loshchilov and Hutter, arXiv 1711.05101, where the decay
    has the schedule but not the learning rate: pass weight_decay as a schedule).

    Args:
      weight_decay, cautious, mask: as in `add_weight_decay`.

    Returns:
      As `add_weight_decay`; but before the learning rate this makes weights grow.

    Raises:
      ValueError, TypeError: as `add_weight_decay`.

    >>> import jax.numpy as jnp
    >>> tx, w = add_independent_weight_decay(0.1), jnp.ones(2)
    >>> print(tx.update(jnp.array([2.0, -2.0]), tx.init(w), w)[0])
    [ 1.9 -2.1]
    """
    return _decay(weight_decay, -1, cautious, mask)


def _decay(
    weight_decay: _checks.ScalarOrSchedule, sign: int, cautious: bool, mask: Any
) -> optax.GradientTransformation:
    """update + sign * weight_decay * w, sign saying which update shrinks w > 0."""
    _checks.check_scalar("weight_decay", weight_decay, low=0.0)
    _checks.check_bool("cautious", cautious)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        decay = optax.identity()  # of the same state, but `update` needs no params
    else:
        decay = _decaying(weight_decay, sign, cautious)
    if mask is None:
        return decay
    return optax.masked(decay, decay_mask("mask", mask))


def decay_mask(argument: str, mask: Any) -> Any:
    """The function params -> tree of bools that a user's mask stands for, checked.

    Args:
      argument: its name, for messages.
      mask: a tree of bools (or prefix), a function that gives one, or None.

    Raises:
      ValueError, TypeError: a mask of another kind; when called, a tree that does not
        fit.
    """
    if mask is None:
        return None
    if isinstance(mask, (bool, np.bool_)):  # what a function of the step count gives
        raise ValueError(_compiled_in(argument, mask))
    if not _is_function(mask):
        _check_bools(argument, mask)
    return functools.partial(_mask_for, argument, mask)


def _mask_for(argument: str, mask: Any, params: Any) -> Any:
    found = mask
    if _is_function(mask):
        found = mask(params)
        _check_bools(f"{argument}(params)", found)
    try:
        jax.tree.map(lambda own, _: own, found, params)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{argument} gives {found}, which does not fit the parameters; it must be "
            f"a tree of bools like them, or a prefix of one: {error}"
        ) from None
    return found


def _is_function(mask: Any) -> bool:
    # Modules of Equinox can be called, and are trees: of bools, if they hold any.
    functions = all(map(callable, jax.tree.leaves(mask)))
    return callable(mask) and functions and not isinstance(mask, type)


def _check_bools(argument: str, mask: Any) -> None:
    """Raise unless `mask` is a tree of bools, which decides what is compiled."""
    for leaf in jax.tree.leaves(mask):
        if isinstance(leaf, (bool, np.bool_)):
            continue
        if isinstance(leaf, (int, float, np.number, np.ndarray, jax.Array)):
            raise ValueError(_compiled_in(argument, mask))
        raise TypeError(f"{argument}={mask!r} must be {_MASKS}; it holds {leaf!r}.")


def _compiled_in(argument: str, mask: Any) -> str:
    return (
        f"{argument}={mask!r} must be {_MASKS}: it is compiled in. Name it in "
        "static_args of optax.inject_hyperparams, which makes arrays of numbers and "
        "takes functions for schedules."
    )


def _decaying(
    weight_decay: _checks.ScalarOrSchedule, sign: int, cautious: bool
) -> optax.GradientTransformation:
    # Its state counts steps where the decay is a schedule.
    plain = optax.add_decayed_weights(weight_decay)

    def decayed(u: jax.Array, w: jax.Array) -> jax.Array:
        opposed = jnp.sign(u) * jnp.sign(w) == -sign
        return sign * (jnp.where(opposed, 0, w) if cautious else w)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "Weight decay needs the weights; pass params to "
                "update(updates, state, params)."
            )
        return plain.update(updates, state, jax.tree.map(decayed, updates, params))

    return optax.GradientTransformation(plain.init, update)


def _decoupled(
    learning_rate: _checks.ScalarOrSchedule, weight_decay: Any, **how: Any
) -> Stages:
    """W loses lr * decay of itself."""
    return (
        add_weight_decay(weight_decay, **how),
        optax.scale_by_learning_rate(learning_rate),
    )


def _independent(
    learning_rate: _checks.ScalarOrSchedule, weight_decay: Any, **how: Any
) -> Stages:
    """W loses a share of itself that no learning rate changes."""
    return (
        optax.scale_by_learning_rate(learning_rate),
        add_independent_weight_decay(weight_decay, **how),
    )


def _lr_squared(
    learning_rate: _checks.ScalarOrSchedule, weight_decay: Any, **how: Any
) -> Stages:
    """W loses lr^2 * decay of itself (modded-nanogpt; with decay / peak rate in place
    of decay, AdamC, arXiv 2506.02285)."""
    return _decoupled(learning_rate, times(weight_decay, learning_rate), **how)


def times(
    weight_decay: _checks.ScalarOrSchedule, learning_rate: _checks.ScalarOrSchedule
) -> _checks.ScalarOrSchedule:
    """Weight decay times learning rate: a schedule if one of them is, 0 stays 0."""
    _checks.check_scalar("weight_decay", weight_decay, low=0.0)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        return weight_decay
    if callable(weight_decay) or callable(learning_rate):
        return lambda count: (
            at_count(weight_decay, count) * at_count(learning_rate, count)
        )
    return weight_decay * learning_rate


DECAY_FORMS: Mapping[str, Callable[..., Stages]] = MappingProxyType(
    {
        "decoupled": _decoupled,
        "independent": _independent,
        "lr_squared": _lr_squared,
    }
)


def decay_and_rate(
    form: str,
    learning_rate: _checks.ScalarOrSchedule,
    weight_decay: _checks.ScalarOrSchedule,
    *,
    cautious: bool = False,
    mask: Any = None,
) -> Stages:
    """Weight decay of a form in `DECAY_FORMS`, and the learning rate, in its order."""
    found = decay_mask("weight_decay_mask", mask)
    return DECAY_FORMS[form](learning_rate, weight_decay, cautious=cautious, mask=found)
