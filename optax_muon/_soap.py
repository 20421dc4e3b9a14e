"""scale_by_soap: momentum preconditioned in the eigenbasis, before the polar step."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._eigenbasis import Statistics, preconditioned, refreshed
from optax_muon._layout import Layout
from optax_muon._matrix_axes import MatrixView
from optax_muon._momentum import accumulate, momentum_weights
from optax_muon._resolution import MatrixAxesLike
from optax_muon._sharding import ShardingLike
from optax_muon._soap_state import (
    Shapes,
    SoapState,
    as_list,
    as_trees,
    shapes_of,
    zeros,
)
from optax_muon._stacking import as_matrices, from_matrices
from optax_muon._trace import at_count, check_momentum, check_same_layout
from optax_muon._whole import on_automatic_axes, whole_views


def scale_by_soap(
    momentum: _checks.ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = True,
    beta2: _checks.Scalar = 0.95,
    statistics_beta: _checks.Scalar | None = None,
    eps: _checks.Scalar = 1e-8,
    frequency: int = 10,
    max_dim: int = 10000,
    one_sided: bool = False,
    momentum_dtype: Any = None,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Momentum preconditioned by SOAP, to be orthogonalized next: SOAP-Muon.

    It replaces momentum before the polar step. From M = V = L = R = 0, for every matrix
    G [fan_in, fan_out], elementwise but for the products:

      M <- mu M + (1 - mu) G
      U = mu M + (1 - mu) G if nesterov else M
      V <- beta2 V + (1 - beta2) (Q_L^T G Q_R)^2
      P = Q_L [(Q_L^T U Q_R) / (sqrt(V) + eps)] Q_R^T
      update = ||U||_F P / ||P||_F
      L <- beta L + (1 - beta) G G^T,    R <- beta R + (1 - beta) G^T G

    The first update is U, plain Muon's; then V is still 0, and Q_L and Q_R become the
    eigenvectors of L and R. After each `frequency` further updates, Q_L <- qr(L Q_L),
    where columns q, and V with them, are first sorted by <q, L q>; R likewise. So no
    gradient enters the basis before it has been seen in it. The norm, to which a polar
    step is blind, keeps P within the range of the gradients' dtype.

    Entries of G far below eps do not precondition: where all are, the update is U. That
    includes those below 1e-19, whose squares underflow float32. Where squares overflow,
    above 1e19, the update is NaN. As long as a side is longer than the gradients so far
    have had directions, part of its basis is arbitrary, and up to rounding.

    Args:
      momentum: mu in [0, 1): a float, a scalar array, or a schedule of the step.
      nesterov: whether U looks one gradient ahead.
      beta2: decay of V, in [0, 1).
      statistics_beta: decay of L and R, in [0, 1); None takes beta2.
      eps: what is added to the root of V, at least 0, in the gradients' unit.
      frequency: a positive int: every how many updates the bases follow L and R; QR is
        skipped in between.
      max_dim: sides longer than this are not preconditioned: their Q is the identity,
        and their L or R is not stored. If neither side is, the update is U. A side of n
        that is keeps two matrices n x n.
      one_sided: precondition the shorter side of each matrix alone, both of squares
        ("std" in the authors' code). It saves most of the memory and time where
        matrices are far from square.
      momentum_dtype: dtype of the stored trace; None keeps each parameter's own. The
        arithmetic is at least float32.
      matrix_axes: as in `scale_by_muon`.
      sharding: likewise; the momentum is laid out like the parameters. Products of
        sharded matrices are left to the compiler, and over Auto axes also how their
        statistics lie: a step compiles once more if they come out otherwise than they
        went in, unless out_shardings of `jax.jit` tell. Over Explicit axes statistics
        stay as they lie, whole from `init`. Inside a user's own `jax.shard_map` only
        batch axes may be sharded.

    Returns:
      A transformation whose state is a `SoapState`. Updates have the dtype and shape of
      the gradients. Zeros alone give zeros; NaN and Inf stay in their matrix.

    Raises:
      ValueError, TypeError: bad arguments; leaves that are no matrices, or inside a
        `jax.shard_map` parts of matrices; gradients unlike the state.

    >>> tx = scale_by_soap()
    >>> g = jnp.array([[3.0, 0.0], [0.0, -0.5]])
    >>> _, state = tx.update(g, tx.init(g))
    >>> update, state = tx.update(g, state)  # of equal size in the eigenbasis
    >>> print((update / update[0, 0]).round(3))
    [[ 1.  0.]
     [ 0. -1.]]

    References:
      Vyas, Zhao, Morwani, Kwun, Kakade, Improving SOAP using Iterative Whitening and
      Muon, 2025, in the order of the authors' v1 (github.com/nikhilvyas/SOAP_MUON),
      which skips the first update; mu, frequency and max_dim are its own.
      Modded-NanoGPT, track 3, pull request 278: the first update, Nesterov, the norm.
      Vyas et al., SOAP, arXiv 2409.11321: beta2 and eps.
    """
    check_momentum(momentum, nesterov, "ema")
    _checks.check_coefficient("beta2", beta2)
    if statistics_beta is not None:
        _checks.check_coefficient("statistics_beta", statistics_beta)
    _checks.check_coefficient("eps", eps, below=math.inf)
    _checks.check_positive_int("frequency", frequency)
    _checks.check_positive_int("max_dim", max_dim)
    _checks.check_bool("one_sided", one_sided)
    stored_dtype = _checks.float_dtype("momentum_dtype", momentum_dtype)

    def viewed(tree: Any) -> tuple[Layout, tuple[MatrixView, ...], list[Shapes]]:
        layout, views = whole_views(tree, matrix_axes, sharding, "scale_by_soap")
        return layout, views, [shapes_of(view, max_dim, one_sided) for view in views]

    def init(params: Any) -> Any:
        layout, _, shapes = viewed(params)
        traces, treedef = jax.tree.flatten(
            optax.tree.zeros_like(params, dtype=stored_dtype)
        )
        statistics = list(map(zeros, jax.tree.leaves(params), shapes))
        return SoapState(
            count=jnp.zeros([], jnp.int32),
            momentum=jax.tree.unflatten(treedef, layout.constrain(traces)),
            **as_trees(treedef, statistics),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        check_alike("scale_by_soap", updates, state.momentum)
        layout, views, shapes = viewed(updates)
        check_same_layout("scale_by_soap", updates, layout, state, sharding)
        gradients, treedef = jax.tree.flatten(updates)
        traces, trace_treedef = jax.tree.flatten(state.momentum)
        steps, traces, statistics = _step(
            gradients,
            traces,
            as_list(state, updates, shapes),
            state.count,
            at_count(momentum, state.count),
            (beta2, beta2 if statistics_beta is None else statistics_beta, eps),
            layout=layout,
            views=views,
            nesterov=nesterov,
            frequency=frequency,
        )
        return jax.tree.unflatten(treedef, steps), SoapState(
            count=optax.safe_increment(state.count),
            momentum=jax.tree.unflatten(trace_treedef, traces),
            **as_trees(trace_treedef, statistics),
        )

    return optax.GradientTransformation(init, update)


# Compiled at module level, so that optimizers of one configuration share a program:
# optax.inject_hyperparams builds a new one at every step.
@partial(jax.jit, static_argnames=("layout", "views", "nesterov", "frequency"))
def _step(
    gradients: list[jax.Array],
    traces: list[jax.Array],
    statistics: list[Statistics],
    count: jax.Array,
    mu: jax.typing.ArrayLike,
    coefficients: tuple[jax.typing.ArrayLike, ...],
    *,
    layout: Layout,
    views: tuple[MatrixView, ...],
    nesterov: bool,
    frequency: int,
) -> tuple[list[jax.Array], list[jax.Array], list[Statistics]]:
    """The step, the new trace and the new statistics of every leaf."""
    weights = momentum_weights(mu, 1 - mu, "ema", count)
    new = [
        accumulate(g, m, weights, nesterov=nesterov)
        for g, m in zip(gradients, traces, strict=True)
    ]
    steps, statistics = on_automatic_axes(
        partial(_on_matrices, views=views, frequency=frequency),
        layout,
        (gradients, statistics),
        gradients,
        [direction for _, direction in new],
        statistics,
        count,
        coefficients,
    )
    traces = layout.constrain([trace for trace, _ in new])
    return layout.constrain(steps), traces, statistics


def _on_matrices(
    gradients: list[jax.Array],
    directions: list[jax.Array],
    statistics: list[Statistics],
    count: jax.Array,
    coefficients: tuple[jax.Array, ...],
    *,
    views: tuple[MatrixView, ...],
    frequency: int,
) -> tuple[list[jax.Array], list[Statistics]]:
    """The step and the new statistics of every leaf."""
    done = [
        _of_leaf(g, u, stats, count == 0, coefficients, view)
        for g, u, stats, view in zip(
            gradients, directions, statistics, views, strict=True
        )
    ]
    statistics = refreshed([stats for _, stats in done], count, frequency)
    return [step for step, _ in done], statistics


def _of_leaf(
    g: jax.Array,
    u: jax.Array,
    stats: Statistics,
    first: jax.Array,
    coefficients: tuple[jax.Array, ...],
    view: MatrixView,
) -> tuple[jax.Array, Statistics]:
    if not stats.second_moment.ndim:
        return u.astype(g.dtype), stats
    dtype = stats.second_moment.dtype
    direction, stats = preconditioned(
        as_matrices(u.astype(dtype), view),
        as_matrices(g.astype(dtype), view),
        stats,
        first,
        *(jnp.asarray(c, dtype) for c in coefficients),
    )
    return from_matrices(direction, view).astype(g.dtype), stats
