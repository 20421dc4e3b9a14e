"""Leaves <-> stacks [batch, n, m] of one shape.

All matrices of one shape, in either orientation, and of one dtype form one stack,
whichever leaf they come from: the compiled program grows with the number of shapes, not
with the number of layers. A cap on a stack's bytes bounds the memory.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from optax_muon._routing import MatrixView

# An iteration holds about three times its stack. Past this size a GPU or TPU is busy
# with a fraction of a stack, so more would cost memory and save no time.
MAX_STACK_BYTES = 2**30

BucketKey = tuple[int, int, np.dtype]


def buckets(
    views: Sequence[MatrixView],
    dtypes: Sequence[np.dtype],
    *,
    either_orientation: bool = True,
    max_bytes: int = MAX_STACK_BYTES,
) -> list[tuple[BucketKey, list[int]]]:
    """Which leaves share a stack: ((rows, columns, dtype), indices of leaves) of each.

    Args:
      either_orientation: whether matrices that are taller than wide are transposed.
      max_bytes: past this a stack is split between two leaves; one leaf never is.
    """
    found: dict[BucketKey, list[int]] = {}
    for index, (view, dtype) in enumerate(zip(views, dtypes, strict=True)):
        fans = sorted(view.fans) if either_orientation else view.fans
        found.setdefault((*fans, dtype), []).append(index)
    sizes = [
        view.size * dtype.itemsize for view, dtype in zip(views, dtypes, strict=True)
    ]
    return [
        (key, part)
        for key, members in found.items()
        for part in _under_the_cap(members, sizes, max_bytes)
    ]


def _under_the_cap(
    members: list[int], sizes: list[int], max_bytes: int
) -> Iterator[list[int]]:
    part: list[int] = []
    for index in members:
        if part and sum(sizes[i] for i in part) + sizes[index] > max_bytes:
            yield part
            part = []
        part.append(index)
    yield part


def map_stacks(
    function: Callable[[jax.Array], jax.Array],
    leaves: Sequence[jax.Array],
    views: Sequence[MatrixView],
    *,
    either_orientation: bool = True,
) -> list[jax.Array]:
    """`function`, which keeps a stack's shape, applied once a stack of all leaves.

    With `either_orientation` it may be given the transpose of a matrix, and its result
    is transposed back.
    """
    results: list[jax.Array] = list(leaves)
    dtypes = [leaf.dtype for leaf in leaves]
    shared = buckets(views, dtypes, either_orientation=either_orientation)
    for (rows, *_), members in shared:
        turned = [views[i].fans[0] != rows for i in members]
        parts = [
            _turn(as_matrices(leaves[i], views[i]), turn)
            for i, turn in zip(members, turned, strict=True)
        ]
        stack = function(jnp.concatenate(parts))
        ends = np.cumsum([part.shape[0] for part in parts])[:-1]
        for i, turn, part in zip(members, turned, jnp.split(stack, ends), strict=True):
            results[i] = from_matrices(_turn(part, turn), views[i])
    return results


def _turn(matrices: Float[Array, "batch i j"], turn: bool) -> Float[Array, "batch k l"]:
    return matrices.mT if turn else matrices


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


def in_chunks(
    function: Callable[[jax.Array], jax.Array],
    x: Float[Array, "*batch m n"],
    matrices: int,
) -> Float[Array, "*batch m n"]:
    """`function` of `matrices` at a time, in a loop; at once where they are fewer."""
    stack = x.reshape((-1, *x.shape[-2:]))
    chunks, rest = divmod(stack.shape[0], matrices)
    if chunks == 0 or (chunks == 1 and rest == 0):
        return function(stack).reshape(x.shape)
    whole = stack[: chunks * matrices].reshape((chunks, matrices, *x.shape[-2:]))
    results = [lax.map(function, whole).reshape((-1, *x.shape[-2:]))]
    if rest:
        results.append(function(stack[-rest:]))
    return jnp.concatenate(results).reshape(x.shape)


def one_by_one(
    function: Callable[[jax.Array], jax.Array], x: Float[Array, "*batch m n"]
) -> Float[Array, "*batch m n"]:
    """`function` of each matrix in turn, in the dtype and the memory of the stack.

    XLA's CPU runs batched products slower than single ones, and spends as long on the
    pages of a second buffer (which `lax.map` would take) as on filling it.
    """
    stack = x.reshape((-1, *x.shape[-2:]))

    def step(k: Array | int, stack: Array) -> Array:
        one = lax.dynamic_index_in_dim(stack, k, keepdims=False)
        one = function(one).astype(stack.dtype)
        return lax.dynamic_update_index_in_dim(stack, one, k, 0)

    count = stack.shape[0]
    stack = step(0, stack) if count == 1 else lax.fori_loop(0, count, step, stack)
    return stack.reshape(x.shape)


def matrices_at_once(
    x: Float[Array, "*batch m n"], max_bytes: int = MAX_STACK_BYTES
) -> int:
    """How many of the matrices fit under the cap, at least one."""
    each = x.shape[-2] * x.shape[-1] * x.dtype.itemsize
    return max(1, max_bytes // each)
