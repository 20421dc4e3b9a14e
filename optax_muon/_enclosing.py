"""What parts that are told nothing of matrices take from the `route` around them."""

import contextvars
from typing import Any

import optax

_MATRIX_AXES = contextvars.ContextVar[Any]("matrix_axes", default=None)
_SHARDING = contextvars.ContextVar[Any]("sharding", default=None)


def enclosing_matrix_axes(given: Any) -> Any:
    """A part's own argument; if that is None, the argument of the `route` around it."""
    return _MATRIX_AXES.get() if given is None else given


def enclosing_sharding(given: Any) -> Any:
    """Likewise."""
    return _SHARDING.get() if given is None else given


def enclose(
    tx: optax.GradientTransformation, matrix_axes: Any, sharding: Any
) -> optax.GradientTransformationExtraArgs:
    """`tx`, the parts of which take these arguments where they have none of their own.

    Neither is None in what lies inside two of them unless both have None.
    """
    wide = optax.with_extra_args_support(tx)

    def within(function: Any) -> Any:
        def run(*args: Any, **extra_args: Any) -> Any:
            axes = _MATRIX_AXES.set(enclosing_matrix_axes(matrix_axes))
            layout = _SHARDING.set(enclosing_sharding(sharding))
            try:
                return function(*args, **extra_args)
            finally:
                _SHARDING.reset(layout)
                _MATRIX_AXES.reset(axes)

        return run

    return optax.GradientTransformationExtraArgs(within(wide.init), within(wide.update))
