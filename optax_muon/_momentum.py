"""Momentum: how a gradient enters the trace, and the direction that leaves it.

With a constant coefficient "ema" and "heavy_ball" give the same direction up to a
factor, which orthogonalization removes; the traces they store differ, and so do
directions while mu changes. "ema_debiased" stores the trace of "ema"; its Nesterov
directions weigh the gradient less in the first steps.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from optax_muon._casts import at_least_float32

# The form whose weights depend on the step: mu^t asks for one mu at all steps.
DEBIASED = "ema_debiased"

Leaf = Float[Array, "..."]
Scalar = Float[Array, ""]
Count = Int[Array, ""]


class Weights(NamedTuple):
    """What traces and gradient are multiplied by in a step.

    Attributes:
      trace, gradient: in the new trace M <- trace M + gradient G. With a weakly typed
        `trace`, that product has the dtype that M is stored in, by JAX's promotion.
      ahead: of the new trace and of G, in the direction that looks ahead (Nesterov).
      plain: of the new trace, in the direction that does not.
    """

    trace: Scalar
    gradient: Scalar
    ahead: tuple[Scalar, Scalar]
    plain: Scalar


def _ema(mu: Scalar, rest: Scalar, step: Count) -> Weights:
    """mu M + (1 - mu) G: torch's lerp, K. Jordan's muon.py, 2024."""
    del step
    return Weights(mu, rest, (mu, rest), jnp.ones_like(mu))


def _heavy_ball(mu: Scalar, rest: Scalar, step: Count) -> Weights:
    """mu M + G: Polyak's form, torch.optim.SGD."""
    del rest, step
    one = jnp.ones_like(mu)
    return Weights(mu, one, (mu, one), one)


def _ema_debiased(mu: Scalar, rest: Scalar, step: Count) -> Weights:
    """M / (1 - mu^t), from zero an average of the gradients so far (Adam).

    Looking ahead, M counts as that of step t + 1, as optax.contrib.muon has it: NAdam
    (Dozat, Incorporating Nesterov Momentum into Adam, 2016) with a constant mu.
    """
    next_step = jnp.asarray(optax.safe_increment(step))
    now, ahead = (1 - mu ** t.astype(mu.dtype) for t in (step, next_step))
    return Weights(mu, rest, (mu / ahead, rest / now), 1 / now)


MOMENTUM_FORMS: Mapping[str, Callable[[Scalar, Scalar, Count], Weights]] = (
    MappingProxyType({"ema": _ema, "heavy_ball": _heavy_ball, DEBIASED: _ema_debiased})
)


def momentum_weights(
    mu: jax.typing.ArrayLike,
    rest: jax.typing.ArrayLike,
    form: str,
    step: jax.typing.ArrayLike,
) -> Weights:
    """The weights of a step.

    Args:
      mu: the momentum coefficient, in [0, 1).
      rest: 1 - mu, taken before mu was rounded: of 0.999 in float32 it is off by 1e-5.
      form: a key of `MOMENTUM_FORMS`.
      step: int32, the number of this step, from 1.
    """
    weights = MOMENTUM_FORMS[form](
        jnp.asarray(mu, float), jnp.asarray(rest, float), jnp.asarray(step)
    )
    if form == DEBIASED:
        # As optax multiplies its trace by a Python number: in bfloat16, 0.95 is 0.949.
        weights = weights._replace(trace=jnp.asarray(1.0 * mu))
    return weights


@partial(jax.jit, static_argnames="nesterov")  # so that equal leaves are traced once
def accumulate(
    gradient: Leaf, trace: Leaf, weights: Weights, *, nesterov: bool
) -> tuple[Leaf, Leaf]:
    """One step of momentum.

    Args:
      gradient: the new gradient, in the parameter's shape.
      trace: the stored momentum.
      weights: of this step.
      nesterov: look ahead: blend the gradient into the new trace once more.

    Returns:
      The new trace in the stored dtype, and the direction to orthogonalize, unrounded
      (float32, or float64 if either input is).
    """
    stored = trace.dtype
    wide = at_least_float32(jnp.promote_types(gradient.dtype, stored))
    kept = stored if jax.typeof(weights.trace).weak_type else wide
    remains = _rounded(weights.trace, kept) * trace.astype(kept)
    weights = jax.tree.map(lambda weight: weight.astype(wide), weights)
    gradient = gradient.astype(wide)
    trace = remains.astype(wide) + weights.gradient * gradient
    if nesterov:
        of_trace, of_gradient = weights.ahead
        return trace.astype(stored), of_trace * trace + of_gradient * gradient
    return trace.astype(stored), weights.plain * trace


def _rounded(weight: Scalar, dtype: np.dtype) -> Scalar:
    """`weight` in `dtype`; XLA would undo a mere cast where its result is widened."""
    low = jnp.finfo(dtype)
    if low.bits < jnp.finfo(weight.dtype).bits:
        weight = lax.reduce_precision(weight, low.nexp, low.nmant)
    return weight.astype(dtype)
