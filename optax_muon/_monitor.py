"""monitor: what Muon does to each matrix, recorded every k steps without a change."""

from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._measurements import (
    COSINE,
    GRADIENT,
    MOMENTUM,
    PREVIOUS,
    UPDATE,
    WEIGHT,
    Sources,
    Watched,
    measure,
    nothing_yet,
)
from optax_muon._records import (
    MonitorState,
    Records,
    as_trees,
    as_trees_like,
    momenta,
    rows_of,
)
from optax_muon._resolution import MatrixAxesLike
from optax_muon._sharding import ShardingLike
from optax_muon._statistics import matrices_and_others
from optax_muon._watch import (
    check_momenta,
    check_state,
    metrics_of,
    needed,
    possible,
    sources_of,
)


def monitor(
    inner: optax.GradientTransformation,
    *,
    every: int | None = 10,
    metrics: Collection[str] | None = None,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Record every few steps what `inner` does to each matrix; and pass it on.

    `read_records` gives the latest records. Of an update U of `inner`, a matrix
    [fan_in, fan_out] with n = min(fan_in, fan_out) singular values, whose RMS is
    r = ||U||_F / sqrt(n):

      "size"      update_rms                 ||U||_F / sqrt(fan_in fan_out)
                  update_nonfinite, gradient_nonfinite    share of NaN and infinities
      "band"      update_sigma_min, _max     extreme singular values of U / r
                  update_orthogonality_error ||O O^T - I||_F / sqrt(n) of O = U / r or
                                             its transpose: the RMS of sigma^2 - 1
      "cosine"    update_cosine              of U and the update of the step before
      "momentum"  momentum_spectral_norm     sigma_max(M)
                  momentum_stable_rank       ||M||_F^2 / sigma_max(M)^2
      "weight"    weight_spectral_norm, weight_stable_rank    likewise

    An exact polar factor, times any number, has the band 1 to 1 and the error 0. So
    rates and scales by shape do not matter, but weight decay is part of what the last
    transformation of a chain gives: for polar factors alone, monitor that part of a
    chain, `optax.chain(monitor(scale_by_muon()), ...)`. The singular values of U itself
    are those over r, times r = update_rms sqrt(max(fan_in, fan_out)).

    Singular values come from 16 steps of Golub and Kahan's bidiagonalization, which are
    32 products with vectors. They lie inside the true band, but for rounding (sigma_min
    of float32 is unsure by 1e-3 sigma_max). In trials sigma_max was at most 1.2 % too
    small, and sigma_min of Newton-Schulz' results at most 0.015 too large; where many
    values are near 0, as in Gaussian squares, it is an upper bound and no more. The
    orthogonality error is estimated with four random vectors: its standard deviation
    is 5 % of it where n = 64 values are alike, 1.3 % for 768, more if a few make it.

    Between measurements the cost is a counter, and for the cosine a copy of the update
    before one. A measurement takes about 370 operations an entry: every 10 steps, below
    2 % of an update's where n is 96 or more. Matrices of one shape are measured as
    one stack of up to 256 MiB. Only vectors are summed over devices; no matrix moves.

    Args:
      inner: the transformation, of a whole model or of matrices alone.
      every: records are taken at updates number `every`, 2 `every`, ...; compiled in.
        None turns monitoring off: `inner` itself is returned.
      metrics: the groups above that are wanted, a collection of names; None for all,
        but "momentum" only where `inner` keeps one in a `MuonState` or `SoapState`.
        "cosine" keeps an update of all matrices in bfloat16, two bytes an entry.
      matrix_axes, sharding: as in `muon`. Around `muon` pass the same here and there;
        in it, or in `route`, None takes those. Leaves that are no matrices have the
        group "size" alone, of all their entries.

    Returns:
      A transformation whose state is a `MonitorState`. Arguments of `update` reach
      `inner`. Momentum is measured after the step, weights before it. Zeros have a
      band and cosine of 0; what holds NaN has NaN.

    Raises:
      ValueError, TypeError: bad arguments; at init, as `muon`; or `metrics` of a
        momentum that is not there. At update, no params where weights are measured,
        or a state of other metrics.

    >>> from optax_muon import muon, read_records
    >>> params = {"kernel": jnp.eye(2, 3)}
    >>> tx = monitor(muon(0.01), every=1)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(params, state, params)
    >>> records = read_records(state)
    >>> print(records["step"], records["kernel/weight_stable_rank"].round(3))
    1 2.0

    References:
      Golub, Kahan, Calculating the singular values and pseudo-inverse, 1965.
      Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990.
      Rudelson, Vershynin, Sampling from large matrices, 2007 (the stable rank).
    """
    _checks.check_part("inner", inner, "optax_muon.muon(1e-3)")
    if every is None:
        return inner
    _checks.check_positive_int("every", every)
    asked = metrics_of(metrics)
    tx = optax.with_extra_args_support(inner)

    def watch(tree: Any, state: Any) -> tuple[Any, tuple[Watched, ...], list[Any]]:
        where = (matrix_axes, sharding, "monitor")
        layout, matrices, are_matrices = matrices_and_others(tree, *where)
        found = momenta(tree, state)
        if metrics is not None and MOMENTUM in metrics:
            check_momenta(tree, are_matrices, found, metrics)
        watched = tuple(
            Watched(one, possible(asked, one.view.size, is_matrix, m is not None))
            for one, is_matrix, m in zip(matrices, are_matrices, found, strict=True)
        )
        return layout, watched, found

    def init(params: Any) -> Any:
        state = tx.init(params)
        layout, watched, _ = watch(params, state)
        leaves, treedef = jax.tree.flatten(params)
        zeros = [jnp.zeros_like(leaf, jnp.bfloat16) for leaf in leaves]
        previous = [
            {COSINE: zero} if COSINE in one.groups else {}
            for one, zero in zip(watched, layout.constrain(zeros), strict=True)
        ]
        records = [nothing_yet(*each) for each in zip(watched, leaves, strict=True)]
        return MonitorState(
            count=jnp.zeros([], jnp.int32),
            step=jnp.zeros([], jnp.int32),
            records=as_trees(treedef, records, asked),
            previous=as_trees(treedef, previous, (COSINE,))[COSINE],
            inner=state,
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if params is not None:
            check_alike("monitor", updates, params)
        steps, inner_state = tx.update(updates, state.inner, params, **extra_args)
        _, watched, found = watch(updates, inner_state)
        trees = {UPDATE: steps, GRADIENT: updates}
        if WEIGHT in asked:
            trees[WEIGHT] = needed(params)
        check_state(state, asked, watched)
        count = optax.safe_increment(state.count)
        step, records, previous = _record(
            (state.step, state.records, state.previous),
            sources_of(trees, found),
            count,
            watched=watched,
            every=every,
        )
        return steps, MonitorState(
            count=count,
            step=step,
            records=records,
            previous=previous,
            inner=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


# Compiled at module level, so that updates outside of jit share a program.
@partial(jax.jit, static_argnames=("watched", "every"))
def _record(
    state: tuple[jax.Array, Records, Any],
    sources: list[dict[str, jax.Array]],
    count: jax.Array,
    *,
    watched: tuple[Watched, ...],
    every: int,
) -> tuple[jax.Array, Records, Any]:
    """Step, records and previous update after an update of number `count`."""
    step, records, previous = state
    before = rows_of({COSINE: previous}, watched)

    def measured() -> tuple[jax.Array, Records]:
        every_source: list[Sources] = [
            row | ({PREVIOUS: old[COSINE]} if old else {})
            for row, old in zip(sources, before, strict=True)
        ]
        return count, as_trees_like(records, measure(watched, every_source))

    def kept() -> Any:
        rows = [
            {name: row[UPDATE] for name in old}
            for row, old in zip(sources, before, strict=True)
        ]
        return as_trees_like({COSINE: previous}, rows)[COSINE]

    step, records = lax.cond(count % every == 0, measured, lambda: (step, records))
    if any(before):
        previous = lax.cond((count + 1) % every == 0, kept, lambda: previous)
    return step, records, previous
