"""Leaves <-> stacks [batch, fan_in, fan_out] of one shape.

All matrices of one shape and dtype, whichever leaf they come from, form one stack: the
compiled program grows with the number of shapes, not with the number of layers.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_muon._routing import MatrixView

BucketKey = tuple[int, int, np.dtype]


def buckets(
    views: Sequence[MatrixView], dtypes: Sequence[np.dtype]
) -> dict[BucketKey, list[int]]:
    """Which leaves share a stack: (fan_in, fan_out, dtype) -> indices of leaves."""
    found: dict[BucketKey, list[int]] = {}
    for index, (view, dtype) in enumerate(zip(views, dtypes, strict=True)):
        found.setdefault((*view.fans, dtype), []).append(index)
    return found


def map_stacks(
    function: Callable[[jax.Array], jax.Array],
    leaves: Sequence[jax.Array],
    views: Sequence[MatrixView],
) -> list[jax.Array]:
    """`function`, which keeps a stack's shape, applied once a stack of all leaves."""
    results: list[jax.Array] = list(leaves)
    for members in buckets(views, [leaf.dtype for leaf in leaves]).values():
        stacks = [as_matrices(leaves[i], views[i]) for i in members]
        stack = function(jnp.concatenate(stacks))
        ends = np.cumsum([part.shape[0] for part in stacks])[:-1]
        for i, part in zip(members, jnp.split(stack, ends), strict=True):
            results[i] = from_matrices(part, views[i])
    return results


def as_matrices(
    leaf: Float[Array, "..."], view: MatrixView
) -> Float[Array, "batch fan_in fan_out"]:
    """The leaf as a stack of its matrices."""
    order = view.batch_axes + view.fan_in_axes + view.fan_out_axes
    return leaf.transpose(order).reshape(view.matrices)


def from_matrices(
    matrices: Float[Array, "batch fan_in fan_out"], view: MatrixView
) -> Float[Array, "..."]:
    """The inverse of `as_matrices`."""
    order = view.batch_axes + view.fan_in_axes + view.fan_out_axes
    split = matrices.reshape([view.shape[axis] for axis in order])
    return split.transpose(np.argsort(order))
