"""Leaves <-> stacks [batch, n, m] of one shape.

All matrices of one shape, in either orientation, of one dtype, and sharded in one way
form one stack, whichever leaf they come from: the compiled program grows with the
number of shapes, not with the number of layers. A cap on the bytes of a stack's leaves
on a device bounds the memory: past it, a shape has several stacks.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from optax_muon._matrix_axes import MatrixView
from optax_muon._mesh_axes import ways
from optax_muon._placement import PlacedView, Placement
from optax_muon._splitting import split

# In float32: 64 matrices of 1024 x 4096.
MAX_STACK_BYTES = 2**30


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
      row_parts, column_parts: lengths of the matrices that lie side by side in each.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    placement: Placement
    members: tuple[int, ...]
    turned: tuple[bool, ...]
    row_parts: tuple[int, ...] = ()
    column_parts: tuple[int, ...] = ()

    @property
    def transposed(self) -> "Stack":
        """The same with rows and columns in each other's place."""
        batch, rows, columns = self.shape
        return dataclasses.replace(
            self,
            shape=(batch, columns, rows),
            placement=self.placement.turned,
            turned=tuple(not turned for turned in self.turned),
            row_parts=self.column_parts,
            column_parts=self.row_parts,
        )

    @property
    def is_mostly_turned(self) -> bool:
        """Whether more leaves are transposed than not."""
        return 2 * sum(self.turned) > len(self.turned)


def stacks(
    views: Sequence[PlacedView],
    dtypes: Sequence[np.dtype],
    *,
    either_orientation: bool = True,
    max_bytes: int = MAX_STACK_BYTES,
) -> list[Stack]:
    """Which leaves share a stack: those of one shape, dtype, placement and parts.

    Args:
      either_orientation: whether matrices may be transposed, so that none is taller
        than wide; of square ones the fewer are.
      max_bytes: past this, on one device, a stack is split between two leaves; one leaf
        never is.
    """
    counts = [view.local.matrices[0] for view in views]
    found: dict[Any, list[Stack]] = {}
    for index, (view, dtype) in enumerate(zip(views, dtypes, strict=True)):
        whole = view.whole
        alone = Stack(
            (counts[index], *whole.fans),
            dtype,
            view.placement,
            (index,),
            (False,),
            whole.fan_in_parts,
            whole.fan_out_parts,
        )
        if either_orientation and view.is_tall:
            alone = alone.transposed
        found.setdefault(_kind(alone), []).append(alone)
    sizes = [
        view.local.size * dtype.itemsize
        for view, dtype in zip(views, dtypes, strict=True)
    ]
    result = []
    for alike in found.values():
        # Of squares the fewer are transposed: XLA may lay out parameters to suit a
        # transposed result, which copies each of them twice.
        together = _united(alike)
        flip = together.is_mostly_turned and together.shape[1] == together.shape[2]
        devices = ways(together.placement.shared)
        for run in _under_the_cap(together.members, counts, sizes, devices, max_bytes):
            stack = _united([alone for alone in alike if alone.members[0] in run])
            result.append(stack.transposed if flip else stack)
    return result


def _kind(stack: Stack) -> Any:
    """What leaves must have in common to share a stack."""
    return (
        stack.shape[1:],
        stack.dtype,
        stack.placement,
        stack.row_parts,
        stack.column_parts,
    )


def _united(stacks: Sequence[Stack]) -> Stack:
    """One stack of several of one kind."""
    return dataclasses.replace(
        stacks[0],
        shape=(sum(stack.shape[0] for stack in stacks), *stacks[0].shape[1:]),
        members=tuple(i for stack in stacks for i in stack.members),
        turned=tuple(turned for stack in stacks for turned in stack.turned),
    )


def _under_the_cap(
    indices: Sequence[int],
    counts: list[int],
    sizes: list[int],
    devices: int,
    max_bytes: int,
) -> Iterator[Sequence[int]]:
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
