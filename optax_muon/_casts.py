"""Casts at the border: how wide arithmetic is, and in which dtype results leave."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def at_least_float32(dtype: Any) -> np.dtype:
    """float32 for the 16-bit dtypes, else `dtype` itself."""
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    """`x` in at least float32; NumPy arrays, as Flax restores them, become JAX's."""
    x = jnp.asarray(x)
    return x.astype(at_least_float32(x.dtype))


def float16_as_float32(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """`tx` seeing float32 for float16: Adam's squares and its eps underflow there."""

    def wide(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: widen(x) if jnp.result_type(x) == jnp.float16 else x, tree
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        return tx.update(wide(updates), state, wide(params), **extra_args)

    return optax.GradientTransformationExtraArgs(
        lambda params: tx.init(wide(params)), update
    )


def in_parameters_dtype(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """`tx`, its updates in the parameters' dtype (without params, the gradients').

    Narrower gradients enter as wide as their parameters, so that no part rounds what it
    makes of them. Scalar arrays, schedules and wide states may widen it too far.
    """

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        like = updates if params is None else params
        steps, state = tx.update(
            _as_wide_as(like, updates), state, params, **extra_args
        )
        return optax.tree.cast_like(steps, like), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _as_wide_as(tree: Any, updates: Any) -> Any:
    """`updates`, narrower ones in the dtype of their leaf of `tree`."""
    leaves, treedef = jax.tree.flatten(updates)

    def widened(x: Any, leaf: Any) -> Any:
        dtypes = jnp.result_type(x), jnp.result_type(leaf)
        if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
            return x
        return jnp.asarray(x).astype(jnp.promote_types(*dtypes))

    wide = map(widened, leaves, jax.tree.leaves(tree))
    return jax.tree.unflatten(treedef, wide)
