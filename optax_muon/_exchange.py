"""Shards of a stack to whole matrices on their owners, and back: one move each way.

All of it runs inside `jax.shard_map`, on one device's shards [batch, n / r, m / c].
Mesh axes go from rows and columns to the stack axis, so that each device comes to own
whole matrices; where matrices are fewer than devices, some axes, or the minor digit of
one, go to the columns instead, so that several devices own the columns of one matrix.
All of them move in a single all-to-all. Of copies every device keeps its share, which
costs nothing; they are made equal again by a single all-gather at the end.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optax_muon._mesh_axes import (
    Axes,
    Axis,
    Digit,
    all_gather,
    all_to_all,
    in_order,
    index,
    ways,
)
from optax_muon._placement import Factor, Placement, Side, axes_of


@dataclasses.dataclass(frozen=True)
class Goal:
    """Mesh axes, or digits of them, that go to one place, by what they cut before.

    Attributes:
      rows, columns, copies: the axes.
    """

    rows: Axes = ()
    columns: Axes = ()
    copies: Axes = ()

    @property
    def axes(self) -> Axes:
        """All of them."""
        return self.rows + self.columns + self.copies

    @property
    def ways(self) -> int:
        """Into how many parts they cut."""
        return ways(self.axes)


@dataclasses.dataclass(frozen=True)
class Division:
    """How devices divide the work on one stack.

    Attributes:
      stack: the mesh axes that go to the stack axis: it is cut into matrices.
      long: those that go to, or stay on, the columns: matrices are cut. Of an axis in
        two digits, the minor one is here and the major one in `stack`.
    """

    stack: Goal = Goal()
    long: Goal = Goal()

    @property
    def to_stack(self) -> Axes:
        """The axes that the all-to-all brings to the stack."""
        return self.stack.rows + self.stack.columns

    @property
    def to_columns(self) -> Axes:
        """The axes that the all-to-all brings to the columns.

        Axes of columns stay there, but for a digit of one whose other digit moves: the
        all-to-all goes over whole axes.
        """
        along = (entry for entry in self.long.columns if isinstance(entry[0], Digit))
        return self.long.rows + tuple(along)

    @property
    def moved(self) -> Axes:
        """The axes over which the all-to-all goes."""
        return in_order(self.to_stack + self.to_columns)

    @property
    def column_axes(self) -> Axes:
        """The mesh axes, or digits, that cut columns while matrices are iterated."""
        return self.long.axes


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
    for digit, minor in division.long.axes:
        if isinstance(digit, Digit):
            placement = placement.split(digit.axis, minor)
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
            start = index(copies) * size
            x = lax.dynamic_slice_in_dim(x, start, size, axis)
    return x


def _to_copies(
    x: Float[Array, "share i k"], division: Division
) -> Float[Array, "batch i j"]:
    """The inverse of `_own_share`."""
    of_stack, of_columns = division.stack.copies, division.long.copies
    if not of_stack + of_columns:
        return x
    together = in_order(of_stack + of_columns)
    places = [together.index(axis) for axis in (*of_stack, *of_columns)]
    at, last = len(of_stack), len(together)
    return _regrouped(
        all_gather(x, together),
        [[size for _, size in together], *([length] for length in x.shape)],
        [*places[:at], last, last + 1, *places[at:], last + 2],
        [len(of_stack) + 1, 1, len(of_columns) + 1],
    )


Label = tuple[str, int | Axis]
"""Of a length: ("mesh", an axis or digit), ("row", 0), ("column", 1), ("own", 0)."""

Group = Sequence[Label]
"""The lengths that an axis is a product of, major first."""

_OWN: Label = ("own", 0)


@dataclasses.dataclass(frozen=True)
class _Move:
    """The all-to-all, and the axes of arrays on its way.

    Attributes:
      sizes: the length that each label stands for.
      over: the mesh axes it goes over.
      shares: the axes of a device's shards, [share, i, k].
      blocks: those of [to or from, own, i, l], whose first goes through the all-to-all.
      matrices: those of its part of the stack, [own, n, l].
    """

    sizes: dict[Label, int]
    over: Axes
    shares: Sequence[Group]
    blocks: Sequence[Group]
    matrices: Sequence[Group]

    @staticmethod
    def of(shape: tuple[int, ...], placement: Placement, division: Division) -> "_Move":
        share, _, k = shape
        columns: Side = placement.columns
        if division.column_axes:  # parts of columns: their order is lost
            columns = (Factor(axes_of(columns), k // ways(division.to_columns)),)
        sizes: dict[Label, int] = {
            ("mesh", axis): size for axis, size in division.moved
        }
        sizes[_OWN] = share // ways(division.to_stack)
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
            division.moved,
            shares=(
                [*_labels(division.to_stack), _OWN],
                lengths["row"],
                [*_labels(division.to_columns), *lengths["column"]],
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
        x = all_to_all(self._rearranged(x, self.shares, self.blocks), self.over)
        return self._rearranged(x, self.blocks, self.matrices)

    def spread(self, x: Float[Array, "own n l"]) -> Float[Array, "share i k"]:
        """The inverse of `collect`."""
        x = all_to_all(self._rearranged(x, self.matrices, self.blocks), self.over)
        return self._rearranged(x, self.blocks, self.shares)

    def _rearranged(
        self, x: Array, before: Sequence[Group], after: Sequence[Group]
    ) -> Array:
        old = [label for group in before for label in group]
        new = [label for group in after for label in group]
        return _regrouped(
            x,
            [[self.sizes[label] for label in group] for group in before],
            [old.index(label) for label in new],
            [len(group) for group in after],
        )


def _regrouped(
    x: Array,
    split: Sequence[Sequence[int]],
    order: Sequence[int],
    merged: Sequence[int],
) -> Array:
    """x with its axes split, put in another order, and merged.

    Axis by axis: JAX types no other reshape where vmap goes along an Explicit axis.

    Args:
      split: the lengths that come in the place of each axis.
      order: of all those, as for a transposition.
      merged: how many of them, in that order, form each axis of the result.
    """
    for at in reversed(range(x.ndim)):
        x = x.reshape(*x.shape[:at], *split[at], *x.shape[at + 1 :])
    x = x.transpose(order)
    for at, count in enumerate(merged):
        length = math.prod(x.shape[at : at + count])
        x = x.reshape(*x.shape[:at], length, *x.shape[at + count :])
    return x


def _labels(axes: Axes) -> list[Label]:
    return [("mesh", axis) for axis, _ in axes]
