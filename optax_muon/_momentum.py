"""Momentum: how a gradient enters the trace, and the direction that leaves it.

With a constant coefficient both forms give the same direction up to a factor, which
orthogonalization removes; the traces they store differ, and so do directions while mu
changes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32

Leaf = Float[Array, "..."]
Scalar = Float[Array, ""]
Weights = tuple[Scalar, Scalar]


def _ema(mu: Scalar) -> Weights:
    """mu trace + (1 - mu) g: torch's lerp, K. Jordan's muon.py, 2024."""
    return mu, 1 - mu


def _heavy_ball(mu: Scalar) -> Weights:
    """mu trace + g: Polyak's form, torch.optim.SGD."""
    return mu, jnp.ones_like(mu)


MOMENTUM_FORMS: Mapping[str, Callable[[Scalar], Weights]] = MappingProxyType(
    {"ema": _ema, "heavy_ball": _heavy_ball}
)


def momentum_weights(mu: jax.typing.ArrayLike, form: str) -> Weights:
    """What trace and gradient are multiplied by in a sum, at the step's mu in [0, 1).

    Args:
      mu: the momentum coefficient.
      form: a key of `MOMENTUM_FORMS`.
    """
    return MOMENTUM_FORMS[form](jnp.asarray(mu, float))


@partial(jax.jit, static_argnames="nesterov")  # so that equal leaves are traced once
def accumulate(
    gradient: Leaf, trace: Leaf, weights: Weights, *, nesterov: bool
) -> tuple[Leaf, Leaf]:
    """One step of momentum.

    Args:
      gradient: the new gradient, in the parameter's shape.
      trace: the stored momentum.
      weights: of trace and gradient.
      nesterov: look ahead: blend the gradient into the new trace once more.

    Returns:
      The new trace in the stored dtype, and the direction to orthogonalize, unrounded
      (float32, or float64 if either input is).
    """
    stored = trace.dtype
    wide = at_least_float32(jnp.promote_types(gradient.dtype, stored))
    of_trace, of_gradient = (weight.astype(wide) for weight in weights)
    gradient = of_gradient * gradient.astype(wide)
    trace = of_trace * trace.astype(wide) + gradient
    direction = of_trace * trace + gradient if nesterov else trace
    return trace.astype(stored), direction
