"""Dion2: in each step only the rows of the momentum that have grown most."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from optax_muon import _checks
from optax_muon._casts import at_least_float32
from optax_muon._functions import OrthogonalizerLike, as_orthogonalizer
from optax_muon._layout import Layout
from optax_muon._matrix_axes import MatrixView
from optax_muon._mesh_axes import name, ways
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._placement import Factor, PlacedView, Side, axes_of, placed_views
from optax_muon._polar_factors import polar_factors
from optax_muon._resolution import MatrixAxesLike, check_views_without_parts
from optax_muon._sharding import ShardingLike
from optax_muon._stacking import as_matrices, from_matrices
from optax_muon._trace import Leaves, Steps, with_trace


def scale_by_dion2(
    fraction: float = 0.25,
    *,
    decay: _checks.Scalar = 0.95,
    momentum_dtype: Any = None,
    orthogonalizer: OrthogonalizerLike = NewtonSchulz(),
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Orthogonalize a fraction of each matrix's shorter side (arXiv 2512.16928).

    With trace M, and K the slices of the shorter side (columns of [fan_in, fan_out] if
    fan_out <= fan_in, else rows) with the largest sums of |M|:

      M <- M + G
      O[K] = polar(M[K]), 0 elsewhere;   then M[K] <- decay M[K]

    What is not selected keeps adding up, until it is: that is the error feedback. Work
    and traffic shrink to about `fraction` of those of `scale_by_muon`, which this
    replaces; chain `scale_by_shape("mup")` behind it, as its authors do. With
    `fraction=1` it is `scale_by_muon(momentum_form="heavy_ball", nesterov=False)`.

    Args:
      fraction: of the slices, in (0, 1]; rounded up, one at least.
      decay: of what was selected, in [0, 1).
      momentum_dtype, orthogonalizer, matrix_axes, sharding: as in `scale_by_muon`.
        Where the shorter side is sharded, every device selects that fraction of its
        own slices, one at least, so that nothing else has to move: the selection then
        depends on the mesh. Elsewhere it does not.

    Returns:
      A transformation whose state is a `MuonState`. Updates have the dtype and shape of
      the gradients.

    Raises:
      ValueError, TypeError: as `scale_by_muon`; leaves with several matrices side by
        side.

    >>> from optax_muon import Svd
    >>> tx = scale_by_dion2(0.5, orthogonalizer=Svd())
    >>> g = jnp.array([[3.0, 0.0], [0.0, 0.5]])
    >>> update, state = tx.update(g, tx.init(g))
    >>> print(update)
    [[1. 0.]
     [0. 0.]]
    >>> print(state.momentum)
    [[2.85 0.  ]
     [0.   0.5 ]]
    """
    fits = isinstance(fraction, (int, float)) and 0 < fraction <= 1
    _checks.check_compiled_in("fraction", fraction, fits, "a number in (0, 1]")
    _checks.check_coefficient("decay", decay)
    stored_dtype = _checks.float_dtype("momentum_dtype", momentum_dtype)
    configuration = as_orthogonalizer(orthogonalizer)

    def placed(tree: Any) -> tuple[Layout, tuple[PlacedView, ...]]:
        layout, views = placed_views(tree, matrix_axes, sharding, "scale_by_dion2")
        check_views_without_parts(
            tree, [view.whole for view in views], "scale_by_dion2"
        )
        return layout, views

    def step(
        gradients: Leaves,
        traces: Leaves,
        count: Any,
        layout: Layout,
        views: tuple[PlacedView, ...],
    ) -> Steps:
        del count
        return _step(
            gradients,
            traces,
            decay,
            configuration,
            layout=layout,
            views=views,
            fraction=fraction,
        )

    return with_trace("scale_by_dion2", placed, step, sharding, stored_dtype)


@partial(jax.jit, static_argnames=("layout", "views", "fraction"))
def _step(
    gradients: Leaves,
    traces: Leaves,
    decay: jax.typing.ArrayLike,
    orthogonalizer: Orthogonalizer,
    *,
    layout: Layout,
    views: tuple[PlacedView, ...],
    fraction: float,
) -> Steps:
    """The step and the new trace of every leaf."""

    def on_one_device(
        gradients: Leaves,
        traces: Leaves,
        rest: tuple[jax.Array, Orthogonalizer],
    ) -> Steps:
        decay, orthogonalizer = rest
        sums = [_sum(g, m) for g, m in zip(gradients, traces, strict=True)]
        chosen = [
            _select(as_matrices(m, view.local), view, fraction)
            for m, view in zip(sums, views, strict=True)
        ]
        polar = polar_factors(
            [c.slices for c in chosen], [c.view for c in chosen], orthogonalizer
        )
        steps, new = [], []
        for c, p, m, view, g, trace in zip(
            chosen, polar, sums, views, gradients, traces, strict=True
        ):
            matrices = as_matrices(m, view.local)
            step = c.put(jnp.zeros_like(matrices), p)
            kept = c.put(matrices, decay.astype(m.dtype) * c.slices)
            steps.append(from_matrices(step, view.local).astype(g.dtype))
            new.append(from_matrices(kept, view.local).astype(trace.dtype))
        return steps, new

    rest = jnp.asarray(decay, float), orthogonalizer
    return layout.on_shards(on_one_device, gradients, traces, rest=rest)


def _sum(gradient: jax.Array, trace: jax.Array) -> jax.Array:
    wide = at_least_float32(jnp.promote_types(gradient.dtype, trace.dtype))
    return gradient.astype(wide) + trace.astype(wide)


class _Chosen(NamedTuple):
    """The slices of a leaf's matrices that this step is about.

    Attributes:
      slices: of this device's shards.
      at: where they come from, along `axis`.
      axis: 1 for rows, 2 for columns.
      view: of the slices.
    """

    slices: Float[Array, "batch i j"]
    at: Int[Array, "batch k"]
    axis: int
    view: PlacedView

    def put(
        self, matrices: Float[Array, "batch n m"], slices: Float[Array, "batch i j"]
    ) -> Float[Array, "batch n m"]:
        """The matrices with these slices in the place of the chosen ones."""

        def put_one(matrix: Array, at: Array, chosen: Array) -> Array:
            where = at if self.axis == 1 else (slice(None), at)
            return matrix.at[where].set(chosen, unique_indices=True)

        return jax.vmap(put_one)(matrices, self.at, slices)


def _select(x: Float[Array, "batch n m"], view: PlacedView, fraction: float) -> _Chosen:
    fan_in, fan_out = view.whole.fans
    axis, across = (2, 1) if fan_out <= fan_in else (1, 2)
    rows, columns = view.placement.rows, view.placement.columns
    scores = jnp.abs(x).sum(across)
    if cut := axes_of(rows if axis == 2 else columns):
        scores = lax.psum(scores, tuple(name(mesh_axis) for mesh_axis, _ in cut))
    count = min(x.shape[axis], max(1, math.ceil(fraction * x.shape[axis])))
    _, at = lax.top_k(scores, count)
    slices = jnp.take_along_axis(x, jnp.expand_dims(at, across), axis)
    return _Chosen(slices, at, axis, _view_of(slices.shape, view, axis))


def _view_of(shape: Sequence[int], view: PlacedView, axis: int) -> PlacedView:
    """The view of slices that lie on the mesh as the matrices do.

    Slices of different devices are in no order, and need none: polar factors of
    permuted matrices are permuted.
    """
    placement = view.placement
    axes = axes_of(placement.columns if axis == 2 else placement.rows)
    length = shape[axis]
    factors: Side = (Factor(axes, length),) if axes or length != 1 else ()
    if axis == 2:
        placement = dataclasses.replace(placement, columns=factors)
    else:
        placement = dataclasses.replace(placement, rows=factors)
    whole = [view.whole.matrices[0], *view.whole.fans]
    whole[axis] = length * ways(axes)
    return PlacedView(
        MatrixView((whole[0], whole[1], whole[2]), (0,), (1,), (2,)),
        MatrixView((shape[0], shape[1], shape[2]), (0,), (1,), (2,)),
        placement,
    )
