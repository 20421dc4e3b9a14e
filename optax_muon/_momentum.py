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


def _ema(gradient: Leaf, trace: Leaf, mu: Scalar) -> Leaf:
    """mu trace + (1 - mu) g: torch's lerp, K. Jordan's muon.py, 2024."""
    return mu * trace + (1 - mu) * gradient


def _heavy_ball(gradient: Leaf, trace: Leaf, mu: Scalar) -> Leaf:
    """mu trace + g: Polyak's form, torch.optim.SGD."""
    return mu * trace + gradient


MOMENTUM_FORMS: Mapping[str, Callable[[Leaf, Leaf, Scalar], Leaf]] = MappingProxyType(
    {"ema": _ema, "heavy_ball": _heavy_ball}
)


@partial(jax.jit, static_argnames=("form", "nesterov"))  # equal leaves: traced once
def accumulate(
    gradient: Leaf,
    trace: Leaf,
    mu: jax.typing.ArrayLike,
    *,
    form: str,
    nesterov: bool,
) -> tuple[Leaf, Leaf]:
    """One step of momentum.

    Args:
      gradient: the new gradient, in the parameter's shape.
      trace: the stored momentum.
      mu: the momentum coefficient, in [0, 1).
      form: a key of `MOMENTUM_FORMS`.
      nesterov: look ahead: blend the gradient into the new trace once more.

    Returns:
      The new trace in the stored dtype, and the direction to orthogonalize, unrounded
      (float32, or float64 if either input is).
    """
    stored = trace.dtype
    wide = at_least_float32(jnp.promote_types(gradient.dtype, stored))
    blend = MOMENTUM_FORMS[form]
    gradient, trace = gradient.astype(wide), trace.astype(wide)
    mu = jnp.asarray(mu, wide)
    trace = blend(gradient, trace, mu)
    direction = blend(gradient, trace, mu) if nesterov else trace
    return trace.astype(stored), direction
