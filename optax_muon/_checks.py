"""Checks of arguments: each error names argument, value, reason and remedy."""

import math
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

Scalar: TypeAlias = float | jax.Array
# optax.Schedule is Any to type checkers, as optax has no py.typed, and would admit all.
ScalarOrSchedule: TypeAlias = Scalar | Callable[[Any], jax.typing.ArrayLike]

FLOATS = ("float16", "bfloat16", "float32", "float64")


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


def check_coefficient(argument: str, value: Any, below: float = 1.0) -> None:
    """Raise unless `value` is a number in [0, below) or a scalar array."""
    if callable(value):
        raise TypeError(
            f"{argument}={value!r} is a function, but takes no schedule; pass a float "
            "or a scalar array (optax.inject_hyperparams can schedule it)."
        )
    check_scalar(argument, value, low=0.0, below=below)


def check_scalar(
    argument: str, value: Any, *, low: float = -math.inf, below: float = math.inf
) -> None:
    """Raise unless `value` is a number in [low, below), a scalar array or a schedule.

    The range is only checked for Python numbers: arrays may be tracers.
    """
    if callable(value) and not isinstance(value, type):
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
    if isinstance(value, (int, float)) and not low <= value < below:
        finite = "finite" if math.isinf(low) else f"finite and at least {low}"
        span = finite if math.isinf(below) else f"in [{low}, {below})"
        raise ValueError(f"{argument}={value!r} is out of range; it must be {span}.")


def float_dtype(argument: str, value: Any) -> np.dtype | None:
    """Canonical real floating dtype of `value`; None stays None."""
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError as error:
        raise TypeError(f"{argument}={value!r} is no dtype: {error}") from None
    if dtype.name not in FLOATS:
        raise ValueError(
            f"{argument}={value!r} cannot be computed in; valid dtypes: "
            f"{', '.join(FLOATS)} (float64 with jax_enable_x64)."
        )
    if dtype == jnp.float64 and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{argument}={value!r} needs 64-bit mode, which is off: JAX would quietly "
            "use float32. Set jax.config.update('jax_enable_x64', True) first."
        )
    return dtype


def check_compiled_in(argument: str, value: Any, fits: bool, wanted: str) -> None:
    """Raise unless `value`, which decides what is compiled, `fits`: is `wanted`.

    Arrays never are: `optax.inject_hyperparams` traces all numbers it is not told of.
    """
    is_array = isinstance(value, (jax.Array, np.ndarray))
    if is_array:
        raise ValueError(
            f"{argument}={value!r} must be {wanted}: it is compiled in. Name it in "
            "static_args of optax.inject_hyperparams, which makes arrays of numbers."
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits:
        raise ValueError(f"{argument}={value!r} must be {wanted}.")


def check_positive_int(argument: str, value: Any) -> None:
    """Raise unless `value`, which decides what is compiled, is an int of at least 1."""
    fits = isinstance(value, int) and value >= 1
    check_compiled_in(argument, value, fits, "a positive int")


def check_part(argument: str, part: Any, example: str) -> None:
    """Raise unless `part` is a transformation, such as `example`."""
    if not isinstance(part, optax.GradientTransformation):
        raise TypeError(
            f"{argument}={part!r} is no optax.GradientTransformation; pass one, "
            f"such as {example}."
        )
