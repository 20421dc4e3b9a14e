"""The cast at the outer border: updates leave in the gradients' dtype."""

from typing import Any

import optax


def in_gradients_dtype(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """`tx`, its updates cast back: scalar arrays and wide states may widen them."""

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        steps, state = tx.update(updates, state, params, **extra_args)
        return optax.tree.cast_like(steps, updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)
