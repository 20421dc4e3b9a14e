"""Shards of a stack to whole matrices on their owners, and back: one move each way.

All of it runs inside `jax.shard_map`, on one device's shards [batch, n / r, m / c].
Mesh axes go from rows and columns to the stack axis, so that each device comes to own
whole matrices; where matrices are fewer than devices, some go to the columns instead,
so that several devices own the columns of one matrix. All of them move in a single
all-to-all. Of copies every device keeps its share, which costs nothing; they are made
equal again by a single all-gather at the end.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optax_muon._layout import Sizes
from optax_muon._placement import Factor, Placement, Side, axes_of, ways


@dataclasses.dataclass(frozen=True)
class Goal:
    """Mesh axes that go to one place, by what they cut before.

    Attributes:
      rows, columns, copies: the axes.
    """

    rows: Sizes = ()
    columns: Sizes = ()
    copies: Sizes = ()

    @property
    def ways(self) -> int:
        """Into how many parts they cut."""
        return ways(self.rows + self.columns + self.copies)


@dataclasses.dataclass(frozen=True)
class Division:
    """How devices divide the work on one stack.

    Attributes:
      stack: the mesh axes that go to the stack axis: it is cut into matrices.
      long: those that go to, or stay on, the columns: matrices are cut.
    """

    stack: Goal = Goal()
    long: Goal = Goal()

    @property
    def moved(self) -> Sizes:
        """The axes over which the all-to-all goes."""
        return self.stack.rows + self.long.rows + self.stack.columns

    @property
    def column_axes(self) -> tuple[str, ...]:
        """The mesh axes that cut columns while the matrices are iterated."""
        return _names(self.long.rows + self.long.columns + self.long.copies)


def exchange(
    function: Callable[[jax.Array], jax.Array],
    shards: Float[Array, "batch i j"],
    placement: Placement,
    division: Division,
) -> Float[Array, "batch i j"]:
    """`function` of the stack whose shards these are, for one device.

    Args:
      function: from this device's part [own, n, m / long] to one like it. Rows and
        columns have their order in the matrices, but for columns that are cut.
      shards: [batch, n / rows, m / columns]; the result is sharded in the same way.
      placement: where they lie.
      division: which mesh axes go where.
    """
    batch = shards.shape[0]
    x = jnp.pad(shards, ((0, -batch % division.stack.ways), (0, 0), (0, 0)))
    x = _own_share(x, division)
    move = _Move.of(x.shape, placement, division)
    # Barriers, or XLA would make x wide before it rearranges it, and narrow only after.
    x = function(lax.optimization_barrier(move.collect(x))).astype(shards.dtype)
    x = move.spread(lax.optimization_barrier(x))
    return _to_copies(x, division)[:batch]


def _own_share(
    x: Float[Array, "batch i j"], division: Division
) -> Float[Array, "share i k"]:
    """Of shards that others have copies of, the part that this device sees to."""
    for axis, copies in ((0, division.stack.copies), (2, division.long.copies)):
        if copies:
            size = x.shape[axis] // ways(copies)
            start = lax.axis_index(_names(copies)) * size
            x = lax.dynamic_slice_in_dim(x, start, size, axis)
    return x


def _to_copies(
    x: Float[Array, "share i k"], division: Division
) -> Float[Array, "batch i j"]:
    """The inverse of `_own_share`."""
    of_stack, of_columns = division.stack.copies, division.long.copies
    if not of_stack + of_columns:
        return x
    parts = lax.all_gather(x, _names(of_stack + of_columns), to="invarying")
    share, i, k = x.shape
    parts = parts.reshape(ways(of_stack), ways(of_columns), share, i, k)
    parts = parts.transpose(0, 2, 3, 1, 4)
    return parts.reshape(-1, i, ways(of_columns) * k)


Label = tuple[str, int | str]
"""Of a length: ("mesh", its axis's name), ("row", 0), ("column", 1), ("own", 0)."""

Group = Sequence[Label]
"""The lengths that an axis is a product of, major first."""

_OWN: Label = ("own", 0)


@dataclasses.dataclass(frozen=True)
class _Move:
    """The all-to-all, and the axes of arrays on its way.

    Attributes:
      sizes: the length that each label stands for.
      names: the mesh axes it goes over.
      shares: the axes of a device's shards, [share, i, k].
      blocks: those of [to or from, own, i, l], whose first goes through the all-to-all.
      matrices: those of its part of the stack, [own, n, l].
    """

    sizes: dict[Label, int]
    names: tuple[str, ...]
    shares: Sequence[Group]
    blocks: Sequence[Group]
    matrices: Sequence[Group]

    @staticmethod
    def of(shape: tuple[int, ...], placement: Placement, division: Division) -> "_Move":
        share, _, k = shape
        to_stack = division.stack.rows + division.stack.columns
        to_columns = division.long.rows
        columns: Side = placement.columns
        if division.column_axes:  # parts of columns: their order is lost
            columns = (Factor(axes_of(columns), k // ways(to_columns)),)
        sizes: dict[Label, int] = {
            ("mesh", name): size for name, size in division.moved
        }
        sizes[_OWN] = share // ways(to_stack)
        lengths: dict[str, list[Label]] = {}
        ordered: dict[str, list[Label]] = {}
        for name, side in (("row", placement.rows), ("column", columns)):
            lengths[name], ordered[name] = [], []
            for at, factor in enumerate(side):
                label: Label = (name, at)
                sizes[label] = factor.length
                lengths[name].append(label)
                cuts = [axis for axis in _labels(factor.axes) if axis in sizes]
                ordered[name] += [*cuts, label]
        return _Move(
            sizes,
            _names(division.moved),
            shares=(
                [*_labels(to_stack), _OWN],
                lengths["row"],
                [*_labels(to_columns), *lengths["column"]],
            ),
            blocks=(
                _labels(division.moved),
                [_OWN],
                lengths["row"],
                lengths["column"],
            ),
            matrices=([_OWN], ordered["row"], ordered["column"]),
        )

    def collect(self, x: Float[Array, "share i k"]) -> Float[Array, "own n l"]:
        """From shards to matrices, whole or some columns of them."""
        x = self._all_to_all(self._rearranged(x, self.shares, self.blocks))
        return self._rearranged(x, self.blocks, self.matrices)

    def spread(self, x: Float[Array, "own n l"]) -> Float[Array, "share i k"]:
        """The inverse of `collect`."""
        x = self._all_to_all(self._rearranged(x, self.matrices, self.blocks))
        return self._rearranged(x, self.blocks, self.shares)

    def _all_to_all(self, x: Array) -> Array:
        return lax.all_to_all(x, self.names, 0, 0, tiled=True) if self.names else x

    def _rearranged(
        self, x: Array, before: Sequence[Group], after: Sequence[Group]
    ) -> Array:
        old = [label for group in before for label in group]
        new = [label for group in after for label in group]
        x = x.reshape([self.sizes[label] for label in old])
        x = x.transpose([old.index(label) for label in new])
        return x.reshape([math.prod(self.sizes[a] for a in group) for group in after])


def _names(axes: Sizes) -> tuple[str, ...]:
    return tuple(name for name, _ in axes)


def _labels(axes: Sizes) -> list[Label]:
    return [("mesh", name) for name, _ in axes]
