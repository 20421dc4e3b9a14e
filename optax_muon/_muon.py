"""scale_by_muon: momentum, then orthogonalization, then a scale by shape."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._functions import OrthogonalizerLike, as_orthogonalizer
from optax_muon._layout import Layout
from optax_muon._momentum import Weights, accumulate, momentum_weights
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._placement import PlacedView, placed_views
from optax_muon._polar_factors import polar_factors
from optax_muon._resolution import MatrixAxesLike
from optax_muon._scaling import ScaleRule, as_scale_rule, scale_factor
from optax_muon._sharding import ShardingLike
from optax_muon._statistics import seen_on_shards
from optax_muon._trace import Leaves, Steps, at_count, check_momentum, with_trace


def scale_by_muon(
    momentum: _checks.ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = True,
    momentum_form: str = "ema",
    momentum_dtype: Any = None,
    orthogonalizer: OrthogonalizerLike = NewtonSchulz(),
    scale: str | ScaleRule | None = "width",
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Momentum orthogonalized by Newton-Schulz, for trees of matrices.

    With trace M, gradient G and coefficient mu, for every matrix [fan_in, fan_out]:

      M <- mu M + (1 - mu) G             ("ema"; "heavy_ball": mu M + G)
      D = mu M + (1 - mu) G if nesterov else M       (heavy ball: mu M + G)
      update = scale(fan_in, fan_out) polar(D)

    "ema_debiased" has the M of "ema", and in step t, from 1,

      D = mu M / (1 - mu^(t + 1)) + (1 - mu) G / (1 - mu^t)     (plain: M / (1 - mu^t))

    The sign is the gradient's: chain with `optax.scale_by_learning_rate`.

    Args:
      momentum: mu in [0, 1): a float, a scalar array, or a schedule of the step.
      nesterov: whether D looks one gradient ahead.
      momentum_form: "ema", "heavy_ball", or "ema_debiased", which needs one mu for all
        steps, and rounds a Python number to the trace's dtype before it multiplies the
        trace by it, as optax does.
      momentum_dtype: dtype of the stored trace; None keeps each parameter's own. The
        arithmetic is at least float32.
      orthogonalizer: `NewtonSchulz(...)`, `Svd()`, `Qdwh()`, or a function from
        [..., m, n] to [..., m, n]. A function sees [batch, fan_in, fan_out].
      scale: "width" sqrt(max(1, out/in)), "mup" sqrt(out/in), "adam_rms"
        0.2 sqrt(max(in, out)), "sqrt_max" sqrt(max(in, out)), a function
        f(fan_in, fan_out) -> float, or None for the polar factor itself.
      matrix_axes: which axes of a leaf form its matrix: a rule
        (path, leaf) -> MatrixAxes, a tree (or tree prefix) of MatrixAxes, or None for
        `flax_matrix_axes`. Every leaf must be a matrix; `muon` routes the others. In a
        recipe or `route`, None takes its axes, and likewise its sharding.
      sharding: how the parameters lie on a mesh, so that matrices move to their owners
        and back instead of being gathered in every product: a tree (or tree prefix) of
        NamedSharding, or of PartitionSpec under the mesh in context; see
        `shardings_of`. Mesh axes that hold copies share the work; `KeepOut` excepts
        them. None reads the types, where axes are Explicit: on a mesh of Auto axes
        nothing tells, and the compiler decides. Inside a user's own `jax.shard_map`,
        specs say what the shards are of.

    Returns:
      A transformation whose state is a `MuonState`. Updates have the dtype and shape of
      the gradients. A gradient of zeros gives zeros; NaN and Inf stay in their matrix.

    Raises:
      ValueError, TypeError: bad arguments; at init, one error that lists every leaf
        that is undecided or no matrix; at update, gradients unlike the state.

    >>> import jax.numpy as jnp
    >>> tx = optax.chain(scale_by_muon(), optax.scale_by_learning_rate(0.02))
    >>> params = {"kernel": jnp.eye(2, 3)}
    >>> state = tx.init(params)
    >>> updates, state = tx.update({"kernel": jnp.ones((2, 3))}, state, params)
    >>> updates["kernel"].shape
    (2, 3)

    References:
      Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
      Bernstein, Newhouse, Old Optimizer, New Norm: An Anthology, arXiv 2409.20325.
    """
    check_momentum(momentum, nesterov, momentum_form)
    stored_dtype = _checks.float_dtype("momentum_dtype", momentum_dtype)
    configuration = as_orthogonalizer(orthogonalizer)
    scale_rule = as_scale_rule(scale)

    def placed(tree: Any) -> tuple[Layout, tuple[PlacedView, ...]]:
        return placed_views(tree, matrix_axes, sharding, "scale_by_muon")

    def step(
        gradients: Leaves,
        traces: Leaves,
        count: Any,
        layout: Layout,
        views: tuple[PlacedView, ...],
    ) -> Steps:
        mu = at_count(momentum, count)
        return _step(
            gradients,
            traces,
            (mu, 1 - mu),
            optax.safe_increment(count),
            configuration,
            layout=layout,
            views=views,
            form=momentum_form,
            nesterov=nesterov,
            factors=tuple(
                tuple(scale_factor(scale_rule, *fans) for fans in v.whole.fans_of_parts)
                for v in views
            ),
        )

    return with_trace("scale_by_muon", placed, step, sharding, stored_dtype)


# Compiled at module level, so that optimizers of one configuration share a program:
# optax.inject_hyperparams builds a new one at every step.
@partial(jax.jit, static_argnames=("layout", "views", "form", "nesterov", "factors"))
def _step(
    gradients: Leaves,
    traces: Leaves,
    mu_and_rest: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike],
    count: jax.Array,
    orthogonalizer: Orthogonalizer,
    *,
    layout: Layout,
    views: tuple[PlacedView, ...],
    form: str,
    nesterov: bool,
    factors: tuple[tuple[float, ...], ...],
) -> Steps:
    """The step and the new trace of every leaf."""

    def on_one_device(
        gradients: Leaves,
        traces: Leaves,
        rest: tuple[Weights, Orthogonalizer],
    ) -> Steps:
        weights, orthogonalizer = rest
        new = [
            accumulate(g, m, weights, nesterov=nesterov)
            for g, m in zip(gradients, traces, strict=True)
        ]
        directions = [
            d.astype(orthogonalizer.input_dtype(jnp.promote_types(g.dtype, m.dtype)))
            for g, m, (_, d) in zip(gradients, traces, new, strict=True)
        ]
        polar = polar_factors(directions, views, orthogonalizer)
        steps = [
            (p if set(each) == {1} else matrices.each(each) * p).astype(g.dtype)
            for each, matrices, p, g in zip(
                factors, seen_on_shards(layout, views), polar, gradients, strict=True
            )
        ]
        return steps, [trace for trace, _ in new]

    weights = momentum_weights(*mu_and_rest, form, count)
    return layout.on_shards(
        on_one_device, gradients, traces, rest=(weights, orthogonalizer)
    )
