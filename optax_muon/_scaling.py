"""Scale rules: the factor of a polar factor, from its fan-in and fan-out."""

import math
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax

from optax_muon._resolution import MatrixAxesLike
from optax_muon._sharding import ShardingLike
from optax_muon._statistics import on_matrices

ScaleRule = Callable[[int, int], float]


def _width(fan_in: int, fan_out: int) -> float:
    """sqrt(max(1, fan_out / fan_in)): K. Jordan's muon.py, 2024."""
    return math.sqrt(max(1, fan_out / fan_in))


def _mup(fan_in: int, fan_out: int) -> float:
    """sqrt(fan_out / fan_in): unit RMS-to-RMS norm (Bernstein, Newhouse, 2024)."""
    return math.sqrt(fan_out / fan_in)


def _adam_rms(fan_in: int, fan_out: int) -> float:
    """0.2 sqrt(max(fan_in, fan_out)): entries as large as AdamW's, so that its learning
    rate and weight decay carry over (Moonlight, arXiv 2502.16982, equation 4)."""
    return 0.2 * math.sqrt(max(fan_in, fan_out))


def _sqrt_max(fan_in: int, fan_out: int) -> float:
    """sqrt(max(fan_in, fan_out)): entries of RMS 1."""
    return math.sqrt(max(fan_in, fan_out))


SCALE_RULES: Mapping[str, ScaleRule] = types.MappingProxyType(
    {"width": _width, "mup": _mup, "adam_rms": _adam_rms, "sqrt_max": _sqrt_max}
)


def as_scale_rule(scale: str | ScaleRule | None) -> ScaleRule | None:
    """The function that `scale` names; functions and None stay what they are."""
    if scale is None or (callable(scale) and not isinstance(scale, type)):
        return scale
    if isinstance(scale, str) and scale in SCALE_RULES:
        return SCALE_RULES[scale]
    names = ", ".join(repr(name) for name in SCALE_RULES)
    raise ValueError(
        f"scale={scale!r} is not known; pass one of {names}, a function "
        "f(fan_in, fan_out) -> float, or None for the bare polar factor."
    )


def scale_factor(rule: ScaleRule | None, fan_in: int, fan_out: int) -> float:
    """The factor of a fan_in x fan_out matrix; empty matrices have none to scale."""
    if rule is None or fan_in == 0 or fan_out == 0:
        return 1.0
    with jax.ensure_compile_time_eval():  # so that a rule may use jax.numpy under jit
        factor = rule(fan_in, fan_out)
    try:
        number = float(factor)
    except (TypeError, ValueError):
        raise TypeError(_no_factor(rule, factor, fan_in, fan_out)) from None
    if not math.isfinite(number):
        raise ValueError(_no_factor(rule, factor, fan_in, fan_out))
    return number


def _no_factor(rule: ScaleRule, factor: Any, fan_in: int, fan_out: int) -> str:
    return (
        f"scale={rule!r} gave {factor!r} for ({fan_in}, {fan_out}); a rule must be a "
        "function f(fan_in, fan_out) -> float, and that finite."
    )


def scale_by_shape(
    rule: str | ScaleRule | None,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Multiply each leaf by a factor of its matrix's fan-in and fan-out. No state.

    Args:
      rule: "width" sqrt(max(1, out/in)), "mup" sqrt(out/in), "adam_rms"
        0.2 sqrt(max(in, out)), "sqrt_max" sqrt(max(in, out)), or a function
        f(fan_in, fan_out) -> float. None changes nothing.
      matrix_axes, sharding: as in `scale_by_muon`; the latter matters inside a user's
        own `jax.shard_map` alone, where it tells the whole fan-in and fan-out.

    Returns:
      A transformation without state; updates keep shape and dtype.

    Raises:
      ValueError: an unknown rule; leaves that are no matrices.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_shape("mup")
    >>> ones = jnp.ones((1, 4))
    >>> print(tx.update(ones, tx.init(ones))[0])
    [[2. 2. 2. 2.]]
    """
    factor = partial(scale_factor, as_scale_rule(rule))
    return on_matrices(
        "scale_by_shape",
        lambda leaf, matrices: matrices.given(factor) * leaf,
        matrix_axes,
        sharding,
    )
