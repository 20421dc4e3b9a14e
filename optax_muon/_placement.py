"""Where the shards of a leaf's matrices lie: what mesh axes do to rows and columns."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optax_muon._layout import Layout, Spec
from optax_muon._matrix_axes import MatrixView
from optax_muon._mesh_axes import Axes, digits, ways
from optax_muon._resolution import MatrixAxesLike, MatrixRoute, matrix_routes
from optax_muon._sharding import ShardingLike, read_layout


@dataclasses.dataclass(frozen=True, order=True)
class Factor:
    """One of the axes that are merged to the rows or columns of a matrix.

    Attributes:
      axes: the mesh axes that cut it, major first; none but where it is sharded.
      length: of one part.
    """

    axes: Axes
    length: int


Side = tuple[Factor, ...]
"""Rows or columns: factors, major first, of which only the first may be uncut."""


@dataclasses.dataclass(frozen=True, order=True)
class Placement:
    """The mesh axes, of sizes above 1, that have a part in one stack of matrices.

    Attributes:
      rows, columns: how they are cut (of the matrix as it is stacked).
      batch: the axes that share matrices out among devices already.
      copies: those that hold copies of each shard.
    """

    rows: Side = ()
    columns: Side = ()
    batch: Axes = ()
    copies: Axes = ()

    @property
    def turned(self) -> "Placement":
        """That of the transposed matrices."""
        return dataclasses.replace(self, rows=self.columns, columns=self.rows)

    @property
    def shared(self) -> Axes:
        """The axes that devices may divide the work over: none if all is local."""
        return axes_of(self.rows) + axes_of(self.columns) + self.copies

    def split(self, axis: str, minor: int) -> "Placement":
        """The same with a mesh axis in two digits, the second of `minor` values."""

        def of(axes: Axes) -> Axes:
            split = (
                digits(axis, size, minor) if name == axis else ((name, size),)
                for name, size in axes
            )
            return tuple(itertools.chain.from_iterable(split))

        def of_side(side: Side) -> Side:
            return tuple(Factor(of(factor.axes), factor.length) for factor in side)

        return dataclasses.replace(
            self,
            rows=of_side(self.rows),
            columns=of_side(self.columns),
            copies=of(self.copies),
        )


def axes_of(side: Side) -> Axes:
    """The mesh axes that cut it, major first."""
    return tuple(axis for factor in side for axis in factor.axes)


@dataclasses.dataclass(frozen=True)
class PlacedView:
    """A leaf as matrices, whole and as the shard that one device has.

    Attributes:
      whole: the view of the whole leaf; fan-in and fan-out are its.
      local: the view of a shard, parts joined.
      placement: where the shards lie.
    """

    whole: MatrixView
    local: MatrixView
    placement: Placement = Placement()

    @property
    def is_tall(self) -> bool:
        """Whether the matrices are taller than wide.

        Of a square matrix the side cut into more parts counts as the wider one, so that
        those cut along either side are stacked together.
        """
        fan_in, fan_out = self.whole.fans
        if fan_in != fan_out:
            return fan_in > fan_out
        rows, columns = self.placement.rows, self.placement.columns
        cuts = ways(axes_of(rows)), ways(axes_of(columns))
        return cuts[0] > cuts[1] or (cuts[0] == cuts[1] and rows > columns)


def whole_leaves(
    tree: Any, sharding: ShardingLike, transformation: str
) -> tuple[Layout, Any]:
    """The layout of a tree, and shapes and dtypes of its leaves before any cut.

    Rules must see those, also inside a user's own `shard_map`.
    """
    layout = read_layout(tree, sharding, transformation)
    leaves, treedef = jax.tree.flatten(tree)
    whole = [
        jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))
        for shape, leaf in zip(layout.shapes, leaves, strict=True)
    ]
    return layout, jax.tree.unflatten(treedef, whole)


def placed_views(
    tree: Any,
    matrix_axes: MatrixAxesLike,
    sharding: ShardingLike,
    transformation: str,
    *,
    moves: bool = True,
) -> tuple[Layout, tuple[PlacedView, ...]]:
    """The layout of a tree of matrices, and each leaf's view and placement in it.

    Raises:
      ValueError: as `matrix_routes` and `read_layout`; or, if shards are to be moved,
        lists the leaves that cannot be as asked.
    """
    layout, whole = whole_leaves(tree, sharding, transformation)
    decided = matrix_routes(whole, matrix_axes, transformation)
    views = place(decided, layout.specs, layout, transformation, moves=moves)
    return layout, views


def place(
    decided: Sequence[MatrixRoute],
    specs: Sequence[Spec],
    layout: Layout,
    transformation: str,
    *,
    moves: bool = True,
) -> tuple[PlacedView, ...]:
    """Each matrix leaf's view and placement; arguments and errors as `placed_views`."""
    placed, failures = [], []
    for route, spec in zip(decided, specs, strict=True):
        view = PlacedView(
            route.view,
            _local(route.view, spec, layout),
            _placement(route.view, spec, layout),
        )
        hindrance = _hindrance(view.placement, layout)
        if moves and hindrance is not None:
            failures.append(f"  {route.path}  {route.shape} {spec}: {hindrance}")
        placed.append(view)
    if failures:
        raise ValueError(
            f"{transformation} cannot bring the matrices of these leaves together:\n"
            + "\n".join(failures)
        )
    return tuple(placed)


def _local(view: MatrixView, spec: Spec, layout: Layout) -> MatrixView:
    return dataclasses.replace(view.joined, shape=layout.local(view.shape, spec))


def _placement(view: MatrixView, spec: Spec, layout: Layout) -> Placement:
    sizes = dict(layout.sizes)

    def cuts(axis: int) -> Axes:
        return tuple((name, sizes[name]) for name in spec[axis] if sizes[name] > 1)

    def side(tensor_axes: Sequence[int]) -> Side:
        factors: list[Factor] = []
        for axis in tensor_axes:
            axes = cuts(axis)
            length = view.shape[axis] // ways(axes)
            if length == 1 and not axes:
                continue
            if factors and not axes:  # each part of the one before has all of it
                before = factors.pop()
                axes, length = before.axes, before.length * length
            factors.append(Factor(axes, length))
        return tuple(factors)

    rows, columns = side(view.fan_in_axes), side(view.fan_out_axes)
    batch = tuple(cut for axis in view.batch_axes for cut in cuts(axis))
    used = {name for name, _ in axes_of(rows) + axes_of(columns) + batch}
    copies = tuple(
        (name, size)
        for name, size in layout.sizes
        if size > 1 and name not in used and name not in layout.kept_out
    )
    return Placement(rows, columns, batch, copies)


def _hindrance(placement: Placement, layout: Layout) -> str | None:
    cut_by = {name for name, _ in axes_of(placement.rows) + axes_of(placement.columns)}
    kept_out = sorted(cut_by & set(layout.kept_out))
    if not kept_out:
        return None
    return (
        f"KeepOut(axes={layout.kept_out}) keeps mesh axes out of the exchange, but "
        f"{kept_out} cut the matrices themselves; shard them over other axes"
    )
