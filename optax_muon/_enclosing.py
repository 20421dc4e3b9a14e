"""What parts that are told no axes or no sharding take from the recipe around them.

JAX's caches know of this context: what was traced in one serves no other.
"""

import contextlib
import functools
from typing import Any

import jax
import optax


class _Told:
    """Arguments of a recipe or `route`; the same objects are equal, and no others."""

    def __init__(self, matrix_axes: Any, sharding: Any) -> None:
        self.matrix_axes, self.sharding = matrix_axes, sharding

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Told)
            and self.matrix_axes is other.matrix_axes
            and self.sharding is other.sharding
        )

    def __hash__(self) -> int:
        return hash((id(self.matrix_axes), id(self.sharding)))


_NOTHING = _Told(None, None)
_TOLD = jax.make_user_context(_NOTHING)


def enclosing_matrix_axes(given: Any) -> Any:
    """A part's own argument; if that is None, the one of the recipe around it."""
    return _TOLD.value.matrix_axes if given is None else given


def enclosing_sharding(given: Any) -> Any:
    """Likewise."""
    return _TOLD.value.sharding if given is None else given


def enclose(
    tx: optax.GradientTransformation, matrix_axes: Any, sharding: Any
) -> optax.GradientTransformationExtraArgs:
    """`tx`, the parts of which take these arguments where they have none of their own.

    Of nested ones the innermost that is not None is taken, each argument by itself.
    """
    wide = optax.with_extra_args_support(tx)
    # No closures: transformations can be pickled by value.
    within = functools.partial(functools.partial, _run, matrix_axes, sharding)
    return optax.GradientTransformationExtraArgs(within(wide.init), within(wide.update))


def _run(
    matrix_axes: Any, sharding: Any, function: Any, *args: Any, **extra_args: Any
) -> Any:
    told = _Told(enclosing_matrix_axes(matrix_axes), enclosing_sharding(sharding))
    with _TOLD(told):
        return function(*args, **extra_args)


def told_nothing() -> contextlib.AbstractContextManager[None]:
    """In it nothing is taken from around: for what answers alike everywhere."""
    return _TOLD(_NOTHING)
