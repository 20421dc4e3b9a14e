"""Sharded matrices whose products are left to the compiler."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

from optax_muon._casts import at_least_float32
from optax_muon._layout import Layout
from optax_muon._matrix_axes import MatrixView, path_name
from optax_muon._placement import PlacedView, axes_of, placed_views
from optax_muon._resolution import MatrixAxesLike
from optax_muon._sharding import ShardingLike


def whole_views(
    tree: Any,
    matrix_axes: MatrixAxesLike,
    sharding: ShardingLike,
    transformation: str,
) -> tuple[Layout, tuple[MatrixView, ...]]:
    """The layout of a tree of matrices, and each leaf's view.

    Inside a user's own `jax.shard_map`, where no compiler brings parts together, a leaf
    holds the device's own matrices: views are of those.

    Raises:
      ValueError: as `placed_views`; or lists the leaves that hold parts of matrices.
    """
    layout, placed = placed_views(tree, matrix_axes, sharding, transformation)
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    parts = [
        f"  {path_name(path)}  {view.whole.shape} over {cut}"
        for (path, _), view in zip(flat, placed, strict=True)
        if (cut := _entered_cuts(view, layout))
    ]
    if parts:
        raise ValueError(
            f"{transformation} needs whole matrices, but inside this jax.shard_map a "
            "device has parts of these leaves' fan-in or fan-out:\n"
            + "\n".join(parts)
            + "\nCall it outside, where the compiler brings them together, or gather "
            "them first (jax.lax.all_gather); batch axes may be sharded."
        )
    return layout, tuple(
        dataclasses.replace(view.whole, shape=jnp.shape(leaf))
        for (_, leaf), view in zip(flat, placed, strict=True)
    )


def _entered_cuts(view: PlacedView, layout: Layout) -> list[str]:
    """The mesh axes, entered by a user, that cut the matrices themselves."""
    sides = axes_of(view.placement.rows) + axes_of(view.placement.columns)
    return [str(name) for name, _ in sides if name not in layout.enter]


def whole_zeros(leaf: Any, shape: tuple[int, ...]) -> jax.Array:
    """At least float32, whole on each device that the leaf is on."""
    zero = jnp.zeros_like(leaf, dtype=at_least_float32(jnp.result_type(leaf))).sum()
    # A copy, since one buffer for several scalars could not be donated.
    return jnp.broadcast_to(zero, shape).copy()


def on_automatic_axes(
    function: Callable[..., Any], layout: Layout, like: Any, *arguments: Any
) -> Any:
    """`function(*arguments)`, for which the compiler chooses over Explicit axes, too.

    The types of products would have to say how each of them lies.

    Args:
      layout: of the leaves.
      like: a tree as the function returns, whose arrays lie as the results will.
    """
    mesh = jax.sharding.get_abstract_mesh() if layout.mesh is None else layout.mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = tuple(n for n in layout.enter if kinds[n] == AxisType.Explicit)
    if not explicit:
        return function(*arguments)
    shardings = jax.tree.map(
        lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), like
    )
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=shardings)(
        *arguments
    )
