"""Momentum: how a gradient enters the trace, and the direction that leaves it.

Both forms give the same direction up to a constant factor, which orthogonalization
removes; they differ when a gradient's scale changes, and in the trace that is stored.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Leaf = Float[Array, "..."]
Scalar = Float[Array, ""]


def _ema(blend_in: Leaf, trace: Leaf, decay: Scalar) -> Leaf:
    """decay trace + (1 - decay) g: torch's lerp, K. Jordan's muon.py, 2024."""
    return decay * trace + (1 - decay) * blend_in


def _heavy_ball(blend_in: Leaf, trace: Leaf, decay: Scalar) -> Leaf:
    """decay trace + g: Polyak's form, torch.optim.SGD."""
    return decay * trace + blend_in


MOMENTUM_FORMS: Mapping[str, Callable[[Leaf, Leaf, Scalar], Leaf]] = MappingProxyType(
    {"ema": _ema, "heavy_ball": _heavy_ball}
)


def accumulate(
    gradient: Leaf,
    trace: Leaf,
    decay: jax.typing.ArrayLike,
    *,
    form: str,
    nesterov: bool,
) -> tuple[Leaf, Leaf]:
    """One step of momentum.

    Args:
      gradient: the new gradient, in the parameter's shape.
      trace: the stored momentum.
      decay: the momentum coefficient, in [0, 1).
      form: a key of `MOMENTUM_FORMS`.
      nesterov: look ahead: blend the gradient into the new trace once more.

    Returns:
      The new trace in the stored dtype, and the direction to orthogonalize, unrounded
      (float32, or float64 if either input is).
    """
    stored = trace.dtype
    wide = jnp.promote_types(jnp.promote_types(gradient.dtype, stored), jnp.float32)
    blend = MOMENTUM_FORMS[form]
    gradient, trace = gradient.astype(wide), trace.astype(wide)
    decay = jnp.asarray(decay, wide)
    trace = blend(gradient, trace, decay)
    direction = blend(gradient, trace, decay) if nesterov else trace
    return trace.astype(stored), direction
