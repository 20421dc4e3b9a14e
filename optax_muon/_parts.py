"""Matrices side by side in one leaf: query, key and value, or gate and up, in one."""

from collections.abc import Callable
from itertools import accumulate

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_muon._stacking import Stack


def shapes_of_parts(stack: Stack) -> list[tuple[int, int]]:
    """Rows and columns of each part; of the one matrix where there are none."""
    _, n, m = stack.shape
    return [
        (rows, columns)
        for rows in stack.row_parts or (n,)
        for columns in stack.column_parts or (m,)
    ]


def in_parts(
    function: Callable[[jax.Array], jax.Array],
    x: Float[Array, "batch n m"],
    stack: Stack,
) -> Float[Array, "batch n m"]:
    """`function` of each part of the matrices; parts of one shape go together."""
    lengths = stack.row_parts or stack.column_parts
    if not lengths:
        return function(x)
    axis = 1 if stack.row_parts else 2
    parts = jnp.split(x, list(accumulate(lengths[:-1])), axis)
    results: dict[int, jax.Array] = {}
    for length in dict.fromkeys(lengths):
        alike = [at for at, other in enumerate(lengths) if other == length]
        stacked = function(jnp.concatenate([parts[at] for at in alike]))
        results |= zip(alike, jnp.split(stacked, len(alike)), strict=True)
    return jnp.concatenate([results[at] for at in range(len(lengths))], axis)
