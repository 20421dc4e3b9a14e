"""QK-clip: weights of queries and keys shrink where an attention's logits are large."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._casts import widen
from optax_muon._qk_attentions import Attention, attentions, logits_of
from optax_muon._qk_rules import QKRule, flax_qk_leaves
from optax_muon._serialization import register_state


@register_state
@chex.dataclass(frozen=True, mappable_dataclass=False)
class QKClipState:
    """State of `qk_clip` where `tau` is a schedule.

    Attributes:
      count: int32 scalar, the number of updates so far.
    """

    count: Any


def qk_clip(
    tau: _checks.ScalarOrSchedule = 100.0,
    *,
    alpha: _checks.Scalar = 0.5,
    rule: QKRule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shrink the weights of heads whose largest logit exceeds tau: MuonClip's QK-clip.

    With S the largest input of softmax of a query head, over the step's batch and token
    pairs, and W the weights after the step, decay and learning rate included:

      gamma = min(1, tau / S), the least of the query heads that share a key head
      W_query <- gamma^alpha W_query,     W_key <- gamma^(1 - alpha) W_key
      W_rotary_query <- gamma W_rotary_query; MLA's shared rotary key stays as it is

    so that each logit of these heads is gamma times what the step made of it. Biases
    are scaled as their kernels are. Chain it last, after the learning rate, and pass S:

      tx = optax.chain(optax_muon.muon(...), optax_muon.qk_clip())
      updates, state = tx.update(gradients, state, params, max_logits=max_logits)

    `sowing_dot_product_attention` lets Flax's attentions record S. S belongs to the
    weights before the step, so a logit may exceed tau by one step's growth. Momentum is
    not scaled: the paper does not speak of it, and Megatron-LM leaves it, too.

    No help where query and key are normalised after their projections (QK-norm): the
    size of the weights then changes no logit. Nor is a bias scaled that is added to
    logits; where that alone exceeds tau, the weights vanish.

    Args:
      tau: the largest logit allowed, above 0: a float, a scalar array, or a schedule.
      alpha: the query's share of gamma, in [0, 1]; the key has the rest.
      rule: (path, leaf) -> QKLeaf | None, None for a leaf that has no part in logits;
        None is `flax_qk_leaves`. See also `mla_qk_leaves`, `stacked` and `QKLeaf`.

    Returns:
      A transformation; `update` needs params and `max_logits`: a tree, NNX State or
      flat mapping that has [*layers, heads] for each attention, at its path or below
      it under the name "max_logits". Query heads that share a key head are neighbours.
      Where a step has several forward passes, as under `optax.MultiSteps`, pass the
      maximum over them so far. Leaves without a part in logits, and heads with S <= tau
      or S not finite, keep their update bit by bit. Updates keep their dtype, computed
      in at least float32. The state is empty, or a `QKClipState` if tau is a schedule.

    Raises:
      ValueError, TypeError: bad arguments; no params or `max_logits`; one error for all
        leaves and attentions that cannot be clipped, and one for all entries and
        attentions without a counterpart.

    >>> kernel = jnp.ones((4, 2, 3))  # [d, heads, head_dim]
    >>> params = {"attention": {"query": {"kernel": kernel}, "key": {"kernel": kernel}}}
    >>> tx, zeros = qk_clip(100.0), optax.tree.zeros_like(params)
    >>> logits = {"attention": {"max_logits": jnp.array([50.0, 400.0])}}
    >>> updates, _ = tx.update(zeros, tx.init(params), params, max_logits=logits)
    >>> clipped = optax.apply_updates(params, updates)
    >>> print(clipped["attention"]["query"]["kernel"][0, :, 0])  # sqrt(100 / 400)
    [1.  0.5]

    References:
      Kimi Team, Kimi K2: Open Agentic Intelligence, arXiv 2507.20534, 2025, section
      2.1, algorithm 1, with tau = 100 and alpha = 1/2. Grouped queries are not in it;
      they are treated as by Megatron-LM's --qk-clip.
    """
    _check(tau, alpha)
    chosen = _as_rule(rule)

    def init(params: Any) -> Any:
        attentions(params, chosen)
        if callable(tau):
            return QKClipState(count=jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        max_logits: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        if params is None or max_logits is None:
            raise ValueError(
                "qk_clip scales weights by their attention's largest logits; pass "
                "update(updates, state, params, max_logits=...)."
            )
        check_alike("qk_clip", updates, params)
        threshold = tau(state.count) if callable(tau) else tau
        steps, treedef = jax.tree.flatten(updates)
        weights = jax.tree.leaves(params)
        for i, factor in _factors(params, max_logits, threshold, alpha, chosen).items():
            steps[i] = _clipped_step(steps[i], weights[i], factor)
        if callable(tau):
            state = QKClipState(count=optax.safe_increment(state.count))
        return jax.tree.unflatten(treedef, steps), state

    return optax.GradientTransformationExtraArgs(init, update)


def clip_qk(
    params: Any,
    max_logits: Any,
    *,
    tau: _checks.Scalar = 100.0,
    alpha: _checks.Scalar = 0.5,
    rule: QKRule | None = None,
) -> Any:
    """`qk_clip` as a function, for parameters after `optax.apply_updates`.

    For trainers that hand no arguments on to the optimizer, as Flax's TrainState.

    Args:
      params: the parameters after the step.
      max_logits, tau, alpha, rule: as in `qk_clip`; tau is no schedule.

    Returns:
      The parameters, W <- gamma.. W: products in at least float32, rounded once.

    Raises:
      ValueError, TypeError: as `qk_clip`.

    >>> leaf = jnp.ones((4, 2, 3))
    >>> params = {"query": {"kernel": leaf}, "key": {"kernel": leaf}}
    >>> clipped = clip_qk(params, {"max_logits": jnp.array([50.0, 400.0])})
    >>> print(clipped["key"]["kernel"][0, :, 0])
    [1.  0.5]
    """
    if callable(tau):
        raise TypeError(
            f"tau={tau!r} is a function, but clip_qk has no count of steps to give it; "
            "pass its value, or use qk_clip."
        )
    _check(tau, alpha)
    leaves, treedef = jax.tree.flatten(params)
    factors = _factors(params, max_logits, tau, alpha, _as_rule(rule))
    for i, factor in factors.items():
        wide = widen(leaves[i])
        leaves[i] = (factor.astype(wide.dtype) * wide).astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, leaves)


def _clipped_step(
    step: jax.typing.ArrayLike, weight: jax.Array, factor: jax.Array
) -> jax.Array:
    """factor * (weight + step) - weight."""
    u, w = widen(jnp.asarray(step)), widen(weight)
    factor = factor.astype(jnp.promote_types(u.dtype, w.dtype))
    # In this form the step of a head that is not clipped is exact, not rounded at w.
    clipped = u + (factor - 1) * (w + u)
    return jnp.where(factor == 1, u, clipped).astype(jnp.result_type(step))


def _factors(
    params: Any, max_logits: Any, tau: Any, alpha: Any, rule: QKRule
) -> dict[int, jax.Array]:
    """What each leaf, by its number, is to be multiplied with."""
    found = attentions(params, rule)
    logits = logits_of(found, max_logits)
    factors = {}
    for names, attention in found.items():
        gamma = _gamma(logits[names], tau, attention)
        powers = {
            "query": gamma**alpha,
            "key": gamma ** (1 - alpha),
            "rotary_query": gamma,
        }
        for index, view in attention.leaves:
            factors[index] = view.spread(powers)
    return factors


def _gamma(logits: jax.Array, tau: Any, attention: Attention) -> jax.Array:
    """gamma [*layers, key_heads] from S [*layers, heads]."""
    # A plain min(1, tau / S) spreads NaN, flips signs at S < 0, erases heads at inf.
    over = (logits > tau) & jnp.isfinite(logits)
    gamma = jnp.where(over, tau / jnp.where(over, logits, 1), 1)
    shared = attention.heads // attention.key_heads
    return gamma.reshape(*attention.layers, attention.key_heads, shared).min(-1)


def _as_rule(rule: Any) -> QKRule:
    if rule is None:
        return flax_qk_leaves
    if not callable(rule) or isinstance(rule, type):
        raise TypeError(
            f"rule={rule!r} is no rule; pass a function (path, leaf) -> QKLeaf | None, "
            "or None for optax_muon.flax_qk_leaves."
        )
    return rule


def _check(tau: Any, alpha: Any) -> None:
    _checks.check_scalar("tau", tau)
    if isinstance(tau, (int, float)) and tau <= 0:
        raise ValueError(f"tau={tau!r} is out of range; it must be above 0.")
    _checks.check_coefficient("alpha", alpha, below=float("inf"))
    if isinstance(alpha, (int, float)) and alpha > 1:
        raise ValueError(f"alpha={alpha!r} is out of range; it must be in [0, 1].")
