"""Leaves <-> stacks [batch, n, m] of one shape, and loops over a stack.

All matrices of one shape, in either orientation, of one dtype, and sharded in one way
form one stack, whichever leaf they come from: the compiled program grows with the
number of shapes, not with the number of layers. A cap on a stack's bytes on a device
bounds the memory: there is one chain a shape, and one more for each further GiB of it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32
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
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    placement: Placement
    members: tuple[int, ...]


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
        than wide.
      max_bytes: past this, on one device, a stack is split between two leaves; one leaf
        never is.
    """
    found: dict[Any, list[int]] = {}
    for index, (view, dtype) in enumerate(zip(views, dtypes, strict=True)):
        turned = either_orientation and view.is_tall
        fans, placement = view.whole.fans, view.placement
        if turned:
            fans, placement = fans[::-1], placement.turned
        found.setdefault((fans, dtype, placement), []).append(index)
    sizes = [
        view.local.size * dtype.itemsize
        for view, dtype in zip(views, dtypes, strict=True)
    ]
    return [
        Stack(
            (sum(views[i].local.matrices[0] for i in part), *fans),
            dtype,
            placement,
            tuple(part),
        )
        for (fans, dtype, placement), members in found.items()
        for part in _under_the_cap(members, sizes, max_bytes)
    ]


def _under_the_cap(
    members: list[int], sizes: list[int], max_bytes: int
) -> Iterator[list[int]]:
    part: list[int] = []
    total = 0
    for index in members:
        if part and total + sizes[index] > max_bytes:
            yield part
            part, total = [], 0
        part.append(index)
        total += sizes[index]
    yield part


def through_stack(
    function: Callable[[jax.Array], jax.Array],
    leaves: Sequence[jax.Array],
    views: Sequence[PlacedView],
    *,
    either_orientation: bool = True,
) -> list[jax.Array]:
    """`function`, which keeps a stack's shape, of all leaves of one stack at once.

    With `either_orientation` it may be given the transpose of a matrix, and its result
    is transposed back.
    """
    turned = [either_orientation and view.is_tall for view in views]
    parts = [
        into_stack(leaf, view.local, turn)
        for leaf, view, turn in zip(leaves, views, turned, strict=True)
    ]
    results = split(function(jnp.concatenate(parts)), [part.shape[0] for part in parts])
    return [
        out_of_stack(part, view.local, turn)
        for part, view, turn in zip(results, views, turned, strict=True)
    ]


# Compiled, like all that is done leaf by leaf: equal leaves are then traced once.
@partial(jax.jit, static_argnames=("view", "turned"))
def into_stack(
    leaf: Float[Array, "..."], view: MatrixView, turned: bool
) -> Float[Array, "batch n m"]:
    """The leaf's matrices, transposed if `turned`."""
    matrices = as_matrices(leaf, view)
    return matrices.mT if turned else matrices


@partial(jax.jit, static_argnames=("view", "turned"))
def out_of_stack(
    part: Float[Array, "batch n m"], view: MatrixView, turned: bool
) -> Float[Array, "..."]:
    """The inverse of `into_stack`."""
    return from_matrices(part.mT if turned else part, view)


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

    The result has the dtype of x.
    """

    def narrow(x: Array) -> Array:
        return function(x).astype(x.dtype)

    stack = x.reshape((-1, *x.shape[-2:]))
    each = x.shape[-2] * x.shape[-1] * at_least_float32(x.dtype).itemsize
    at_once = max(1, max_bytes // each)
    chunks, rest = divmod(stack.shape[0], at_once)
    if stack.shape[0] <= at_once:
        return narrow(stack).reshape(x.shape)
    whole = stack[: chunks * at_once].reshape((chunks, at_once, *x.shape[-2:]))
    results = [lax.map(narrow, whole).reshape((-1, *x.shape[-2:]))]
    if rest:
        results.append(narrow(stack[-rest:]))
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
