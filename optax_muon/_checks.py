"""Checks of arguments: each error names argument, value, reason and remedy."""

import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Scalar = float | jax.Array


def check_choice(argument: str, value: Any, valid: Collection[str]) -> None:
    """Raise unless `value` is one of the names in `valid`."""
    if not isinstance(value, str) or value not in valid:
        names = ", ".join(repr(name) for name in valid)
        raise ValueError(f"{argument}={value!r} is not known; valid names: {names}.")


def check_bool(argument: str, value: Any) -> None:
    """Raise unless `value` is True or False: flags choose the traced program."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"{argument}={value!r} is no bool; it selects the program that is "
            "compiled, so it must be True or False when the optimizer is built."
        )


def check_scalar(
    argument: str, value: Any, *, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raise unless `value` is a number in [low, high], a scalar array or a schedule.

    The range is only checked for Python numbers: arrays may be tracers.
    """
    if callable(value):
        return
    if isinstance(value, bool) or not isinstance(
        value, (int, float, np.number, np.ndarray, jax.Array)
    ):
        raise TypeError(
            f"{argument}={value!r} has type {type(value).__name__}; pass a float, a "
            "scalar array, or a schedule (a function from the step count to a float)."
        )
    if isinstance(value, (np.ndarray, jax.Array)) and value.shape != ():
        raise ValueError(
            f"{argument} has shape {value.shape}; pass a scalar (shape ()), or one "
            "optimizer per group of leaves through optax.partition."
        )
    if isinstance(value, (int, float)) and not low <= value <= high:
        span = f"at least {low}" if math.isinf(high) else f"in [{low}, {high}]"
        raise ValueError(f"{argument}={value!r} is out of range; it must be {span}.")


def float_dtype(argument: str, value: Any) -> np.dtype | None:
    """Canonical real floating dtype of `value`; None stays None."""
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError as error:
        raise TypeError(f"{argument}={value!r} is no dtype: {error}") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{argument}={value!r} is no real floating dtype; use float16, bfloat16, "
            "float32, or float64 with jax_enable_x64."
        )
    if dtype == jnp.float64 and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{argument}={value!r} needs 64-bit mode, which is off: JAX would quietly "
            "use float32. Set jax.config.update('jax_enable_x64', True) first."
        )
    return dtype
