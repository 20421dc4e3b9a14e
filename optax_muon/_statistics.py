"""Sums over each matrix of a leaf, be it whole or sharded, or one of several parts."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optax_muon import _mesh_axes
from optax_muon._casts import at_least_float32
from optax_muon._layout import Layout
from optax_muon._matrix_axes import MatrixView
from optax_muon._mesh_axes import Axes
from optax_muon._placement import PlacedView, placed_views, whole_leaves
from optax_muon._resolution import MatrixAxesLike, routes
from optax_muon._sharding import ShardingLike


@dataclasses.dataclass(frozen=True)
class Matrices:
    """The matrices of one leaf, for sums over each of them.

    Arrays that come and go have the leaf's axes, with length 1 where they were summed.
    A sum over parts that lie side by side is repeated along each of them.

    Attributes:
      view: of the whole leaf.
      cuts: of each of its axes, the mesh axes that cut it in the `jax.shard_map` that
        this is called in; none where an array is seen as a whole.
    """

    view: MatrixView
    cuts: tuple[Axes, ...]

    def over_inputs(self, x: jax.Array) -> jax.Array:
        """The sum over the fan-in: one number for each output neuron."""
        return self._sum(x, self.view.fan_in_axes)

    def over_outputs(self, x: jax.Array) -> jax.Array:
        """The sum over the fan-out: one number for each input."""
        return self._sum(x, self.view.fan_out_axes)

    def over_all(self, x: jax.Array) -> jax.Array:
        """The sum over all entries of a matrix."""
        return self._sum(x, self.view.fan_in_axes + self.view.fan_out_axes)

    def norm_over_inputs(self, x: jax.Array) -> jax.Array:
        """Of each output neuron's weights, whatever their magnitude."""
        return self._norm(x, self.view.fan_in_axes)

    def norm_over_outputs(self, x: jax.Array) -> jax.Array:
        """Of each input's weights, whatever their magnitude."""
        return self._norm(x, self.view.fan_out_axes)

    def norm(self, x: jax.Array) -> jax.Array:
        """The Frobenius norm of each matrix, whatever its magnitude."""
        return self._norm(x, self.view.fan_in_axes + self.view.fan_out_axes)

    def given(self, function: Callable[[int, int], float]) -> float | jax.Array:
        """`function(fan_in, fan_out)` of each matrix."""
        values = [function(*fans) for fans in self.view.fans_of_parts]
        return values[0] if len(values) == 1 else self.each(values)

    def each(self, values: Sequence[float]) -> float | jax.Array:
        """A value for each part, for one matrix a number."""
        if len(values) == 1:
            return values[0]
        return jnp.asarray(values, float)[self._part_numbers()]

    def along(self, axes: tuple[int, ...], values: np.ndarray) -> jax.Array:
        """A value for each index along the axes, merged; length 1 along all others."""
        shape = self.view.shape
        values = values.reshape([shape[axis] for axis in axes])
        values = values.transpose(np.argsort(axes))
        local = jnp.asarray(
            values.reshape([n if a in axes else 1 for a, n in enumerate(shape)])
        )
        for axis in axes:
            if cuts := self.cuts[axis]:
                length = shape[axis] // _mesh_axes.ways(cuts)
                start = _mesh_axes.index(cuts) * length
                local = lax.dynamic_slice_in_dim(local, start, length, axis)
        return local

    def without_axes(self, statistic: jax.Array) -> jax.Array:
        """A sum over all of each matrix as [*batch], or [*batch, parts] if it has some.

        The same on every device that has a part of the matrix.
        """
        view = self.view
        if view.parts:  # each value from the first entry of its part
            starts = np.cumsum((0, *view.parts[:-1]))
            first = self.along(
                view.parted_axes, np.isin(np.arange(sum(view.parts)), starts)
            )
            belongs = self._belongs() & first[..., None]
            of_parts = jnp.where(belongs, statistic[..., None], 0)
            statistic = self._reduce_whole(
                of_parts, view.parted_axes, jnp.sum, lax.psum
            )
        return jnp.squeeze(statistic, view.fan_in_axes + view.fan_out_axes)

    def _norm(self, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        # Of entries near 1, as squares of others may not fit the dtype.
        largest = self._reduce(jnp.abs(x), axes, jnp.max, lax.pmax)
        scaled = x / jnp.where(largest > 0, largest, 1)
        return largest * jnp.sqrt(self._sum(scaled**2, axes))

    def _sum(self, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return self._reduce(x, axes, jnp.sum, lax.psum)

    def _reduce(
        self,
        x: jax.Array,
        axes: tuple[int, ...],
        here: Callable[..., jax.Array],
        across: Callable[..., jax.Array],
    ) -> jax.Array:
        """`here` of what this device has, then `across`; maxima are of no negatives."""
        parted = tuple(axis for axis in axes if axis in self.view.parted_axes)
        others = tuple(axis for axis in axes if axis not in parted)
        x = self._reduce_whole(x, others, here, across)
        if not parted:
            return x
        # A last axis for the parts. No product with zeros, which would spread NaN.
        belongs = self._belongs()
        of_parts = self._reduce_whole(
            jnp.where(belongs, x[..., None], 0), parted, here, across
        )
        return jnp.where(belongs, of_parts, 0).sum(-1)

    def _reduce_whole(
        self,
        x: jax.Array,
        axes: tuple[int, ...],
        here: Callable[..., jax.Array],
        across: Callable[..., jax.Array],
    ) -> jax.Array:
        """The same over axes without parts."""
        over = tuple(name for axis in axes for name, _ in self.cuts[axis])
        x = here(x, axes, keepdims=True)
        return across(x, over) if over else x

    def _belongs(self) -> jax.Array:
        """Which part an entry belongs to, as a last axis of bools."""
        return self._part_numbers()[..., None] == jnp.arange(len(self.view.parts))

    def _part_numbers(self) -> jax.Array:
        """Which part an entry belongs to, of length 1 along all other axes."""
        parts = self.view.parts
        return self.along(
            self.view.parted_axes, np.repeat(np.arange(len(parts)), parts)
        )


def matrices_of(
    tree: Any, matrix_axes: MatrixAxesLike, sharding: ShardingLike, name: str
) -> tuple[Layout, list[Matrices]]:
    """Those of each leaf of a tree, which is whole but for a user's own shard_map.

    Args:
      tree: arrays, or anything with shape and dtype.
      matrix_axes, sharding: the user's arguments.
      name: of the transformation, for messages.
    """
    layout, views = placed_views(tree, matrix_axes, sharding, name, moves=False)
    entered = map(layout.entered, range(len(views)))
    return layout, list(_matrices([v.whole for v in views], layout, entered))


def matrices_and_others(
    tree: Any, matrix_axes: MatrixAxesLike, sharding: ShardingLike, name: str
) -> tuple[Layout, list[Matrices], list[bool]]:
    """As `matrices_of`, of any tree, and which leaves are of matrices.

    Each of the others is one column of all its entries.
    """
    layout, whole = whole_leaves(tree, sharding, name)
    decided = routes(whole, matrix_axes)
    views = [
        MatrixView(route.shape, (), tuple(range(len(route.shape))), ())
        if route.view is None
        else route.view
        for route in decided
    ]
    entered = map(layout.entered, range(len(views)))
    are_matrices = [route.view is not None for route in decided]
    return layout, list(_matrices(views, layout, entered)), are_matrices


def seen_on_shards(layout: Layout, views: Sequence[PlacedView]) -> list[Matrices]:
    """Those of each leaf inside `layout.on_shards`."""
    return list(_matrices([v.whole for v in views], layout, layout.specs))


def _matrices(
    views: Sequence[MatrixView], layout: Layout, specs: Any
) -> Iterator[Matrices]:
    sizes = dict(layout.sizes)
    for view, spec in zip(views, specs, strict=True):
        cuts = tuple(tuple((name, sizes[name]) for name in axes) for axes in spec)
        yield Matrices(view, cuts)


def on_matrices(
    name: str,
    function: Callable[[jax.Array, Matrices], jax.Array],
    matrix_axes: MatrixAxesLike,
    sharding: ShardingLike,
) -> optax.GradientTransformation:
    """A transformation without state that is `function(leaf, its matrices)`.

    Args:
      name: of the transformation, for messages.
      function: sees the leaf in at least float32, and never an empty one; what it
        gives is cast to the leaf's dtype.
      matrix_axes, sharding: the user's arguments.
    """

    def init(params: Any) -> Any:
        matrices_of(params, matrix_axes, sharding, name)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        _, every = matrices_of(updates, matrix_axes, sharding, name)
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, updates))
        new = [
            function(leaf.astype(at_least_float32(leaf.dtype)), matrices).astype(
                leaf.dtype
            )
            if leaf.size
            else leaf
            for leaf, matrices in zip(leaves, every, strict=True)
        ]
        return jax.tree.unflatten(treedef, new), state

    return optax.GradientTransformation(init, update)
