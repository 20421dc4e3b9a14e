"""Leaves <-> stacks [batch, n, m] of one shape, and loops over a stack.

All matrices of one shape, in either orientation, of one dtype, and sharded in one way
form one stack, whichever leaf they come from: the compiled program grows with the
number of shapes, not with the number of layers. A cap on the bytes of a stack's leaves
on a device bounds the memory: past it, a shape has several stacks.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32
from optax_muon._mesh_axes import ways
from optax_muon._placement import PlacedView, Placement
from optax_muon._routing import MatrixView
from optax_muon._splitting import split

# In float32: 64 matrices of 1024 x 4096.
MAX_STACK_BYTES = 2**30

# In float32, of the matrices that are iterated at once: an iteration holds them three
# to four times, and products of this size no longer gain from being more.
MAX_CHUNK_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class Stack:
    """Matrices that go through one chain together.

    Attributes:
      shape: [batch, rows, columns]: the matrices' whole rows and columns, but of the
        batch what one device has (shards of).
      dtype: of the leaves.
      placement: where shards of the matrices lie, as they are stacked.
      members: indices of the leaves.
      turned: of each of them, whether its matrices are transposed.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    placement: Placement
    members: tuple[int, ...]
    turned: tuple[bool, ...]


def stacks(
    views: Sequence[PlacedView],
    dtypes: Sequence[np.dtype],
    *,
    either_orientation: bool = True,
    max_bytes: int = MAX_STACK_BYTES,
) -> list[Stack]:
    """Which leaves share a stack: those of one shape, dtype and placement.

    Args:
      either_orientation: whether matrices may be transposed, so that none is taller
        than wide; of square ones the fewer are.
      max_bytes: past this, on one device, a stack is split between two leaves; one leaf
        never is.
    """
    found: dict[Any, dict[int, bool]] = {}
    for index, (view, dtype) in enumerate(zip(views, dtypes, strict=True)):
        fans, placement = view.whole.fans, view.placement
        if turn := either_orientation and view.is_tall:
            fans, placement = fans[::-1], placement.turned
        found.setdefault((fans, dtype, placement), {})[index] = turn
    counts = [view.local.matrices[0] for view in views]
    sizes = [
        view.local.size * dtype.itemsize
        for view, dtype in zip(views, dtypes, strict=True)
    ]
    result = []
    for (fans, dtype, placement), turned in found.items():
        # Of squares the fewer: XLA may lay out parameters to suit a transposed result,
        # which copies each of them twice.
        most = 2 * sum(turned.values()) > len(turned)
        other = most and fans[0] == fans[1]
        devices = ways(placement.shared)
        for members in _under_the_cap(list(turned), counts, sizes, devices, max_bytes):
            stack = Stack(
                (sum(counts[i] for i in members), *fans),
                dtype,
                placement.turned if other else placement,
                tuple(members),
                tuple(turned[i] != other for i in members),
            )
            result.append(stack)
    return result


def _under_the_cap(
    indices: list[int],
    counts: list[int],
    sizes: list[int],
    devices: int,
    max_bytes: int,
) -> Iterator[list[int]]:
    """Runs of leaves, each of as many as fit under the cap, of one at least.

    A run ends where its matrices are a multiple of the devices, if it can: what is
    missing to the next multiple is padding.
    """
    start = 0
    while start < len(indices):
        rest = indices[start:]
        bytes_so_far = itertools.accumulate(sizes[i] for i in rest)
        fit = max(1, sum(total <= max_bytes for total in bytes_so_far))
        matrices_so_far = itertools.accumulate(counts[i] for i in rest[:fit])
        whole = [k for k, n in enumerate(matrices_so_far, 1) if n % devices == 0]
        stop = start + (whole[-1] if whole and fit < len(rest) else fit)
        yield indices[start:stop]
        start = stop


def join(
    leaves: Mapping[int, jax.Array],
    views: Sequence[PlacedView],
    stack: Stack,
    dtype: np.dtype,
) -> Float[Array, "batch i j"]:
    """The matrices of a stack, or this device's shards of them, as one array.

    Args:
      leaves: at least the stack's members, by their indices.
      views: of all leaves.
      stack: who is in it.
      dtype: of the result.
    """
    return jnp.concatenate(
        [
            into_stack(leaves[i], views[i].local, turned, dtype)
            for i, turned in zip(stack.members, stack.turned, strict=True)
        ]
    )


def part(
    joined: Float[Array, "batch i j"], views: Sequence[PlacedView], stack: Stack
) -> dict[int, jax.Array]:
    """The inverse of `join`: arrays like the leaves, by their indices."""
    parts = split(joined, [views[i].local.matrices[0] for i in stack.members])
    return {
        i: out_of_stack(matrices, views[i].local, turned, stack.dtype)
        for i, turned, matrices in zip(stack.members, stack.turned, parts, strict=True)
    }


# Compiled, like all that is done leaf by leaf: equal leaves are then traced once.
@partial(jax.jit, static_argnames=("view", "turned", "dtype"))
def into_stack(
    leaf: Float[Array, "..."], view: MatrixView, turned: bool, dtype: np.dtype
) -> Float[Array, "batch n m"]:
    """The leaf's matrices, transposed if `turned`."""
    # Without a barrier XLA would fuse a leaf's momentum with the stack it goes to, and
    # that takes a TPU's compiler longer than all the rest.
    matrices = as_matrices(lax.optimization_barrier(leaf.astype(dtype)), view)
    return matrices.mT if turned else matrices


@partial(jax.jit, static_argnames=("view", "turned", "dtype"))
def out_of_stack(
    part: Float[Array, "batch n m"], view: MatrixView, turned: bool, dtype: np.dtype
) -> Float[Array, "..."]:
    """The inverse of `into_stack`."""
    return from_matrices(part.mT if turned else part, view).astype(dtype)


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
    max_bytes: int = MAX_CHUNK_BYTES,
) -> Float[Array, "*batch m n"]:
    """`function` of as many matrices at a time as fit under the cap in float32.

    It takes one matrix at least, and fewer than fit if all chunks can have one size:
    each size is compiled. The result has the dtype, and the memory, of x.
    """

    def narrow(x: Array) -> Array:
        return function(x).astype(x.dtype)

    stack = x.reshape((-1, *x.shape[-2:]))
    each = x.shape[-2] * x.shape[-1] * at_least_float32(x.dtype).itemsize
    count = stack.shape[0]
    fit = max(1, max_bytes // each)
    if count <= fit:
        return narrow(stack).reshape(x.shape)
    divisors = (size for size in range(fit, fit // 2, -1) if count % size == 0)
    at_once = next(divisors, fit)
    chunks, rest = divmod(count, at_once)

    def step(start: Array | int, size: int, stack: Array) -> Array:
        chunk = narrow(lax.dynamic_slice_in_dim(stack, start, size))
        return lax.dynamic_update_slice_in_dim(stack, chunk, start, 0)

    stack = lax.fori_loop(0, chunks, lambda k, s: step(k * at_once, at_once, s), stack)
    if rest:
        stack = step(chunks * at_once, rest, stack)
    return stack.reshape(x.shape)


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
