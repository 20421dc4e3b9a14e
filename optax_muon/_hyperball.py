"""Hyperball: steps that leave the Frobenius norm of every matrix as it began."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._casts import widen
from optax_muon._matrix_axes import path_name
from optax_muon._norms import nonzero
from optax_muon._resolution import MatrixAxesLike
from optax_muon._serialization import register_state
from optax_muon._sharding import ShardingLike
from optax_muon._statistics import Matrices, matrices_of
from optax_muon._trace import at_count


@register_state
@chex.dataclass(frozen=True, mappable_dataclass=False)
class HyperballState:
    """State of `step_on_hyperball`.

    Attributes:
      count: int32 scalar, the number of updates so far; schedules read it.
      radius: a tree like the parameters: the initial Frobenius norm of each matrix, its
        axes of length 1 (where a side has parts, values are repeated along each).
    """

    count: Any
    radius: Any


def step_on_hyperball(
    learning_rate: _checks.ScalarOrSchedule,
    *,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Step along the sphere of each matrix's initial norm: the last stage of a chain.

    With R the Frobenius norm that the matrix W had at `init`, U the update so far, and
    N(X) = X / ||X||_F (Hyperball, arXiv 2606.16899):

      W <- R N(W - learning_rate R N(U))

    It takes the place of scale by shape, weight decay and learning rate. The rate is
    about the angle, in radians, that W turns by in a step: U's own norm, and so any
    scale by shape, does not matter. It sees directions of ascent: in a chain, no
    learning rate may come before it, and nothing behind it but `qk_clip`.

    Args:
      learning_rate: a float, a scalar array, or a schedule of the step; dimensionless.
      matrix_axes, sharding: as in `normalize_neurons`. Each matrix has a sphere of its
        own, however many a leaf holds.

    Returns:
      A transformation whose `update` needs params and gives new W - W, in W's dtype.
      Without a step (U = 0), W only returns to its sphere.

    Raises:
      ValueError: at init, matrices of zeros, all of them by name: they have no sphere.
        (Under jit that is a `jax.errors.JaxRuntimeError` from a callback of the running
        program, which `jax.export` cannot serialize; such matrices stay zero.) No
        params in `update`; leaves that are no matrices; gradients unlike the state.

    >>> tx, w = step_on_hyperball(1.0), jnp.array([[3.0], [0.0]])
    >>> update, _ = tx.update(jnp.array([[0.0], [7.0]]), tx.init(w), w)
    >>> print((w + update).round(3))  # turned by 45 degrees, still 3 long
    [[ 2.121]
     [-2.121]]
    """
    _checks.check_scalar("learning_rate", learning_rate)
    name = "step_on_hyperball"

    def init(params: Any) -> Any:
        layout, every = matrices_of(params, matrix_axes, sharding, name)
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
        radii = [
            matrices.norm(widen(leaf))
            if leaf.size
            else jnp.zeros(_radius_shape(matrices, leaf))
            for leaf, matrices in zip(leaves, every, strict=True)
        ]
        _check_radii(params, radii)
        merged = [matrices.view.reduced_axes for matrices in every]
        radii = layout.without(merged).constrain(radii)
        return HyperballState(
            count=jnp.zeros([], jnp.int32), radius=jax.tree.unflatten(treedef, radii)
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                f"{name} steps from the weights; pass params to "
                "update(updates, state, params)."
            )
        check_alike(name, updates, params)
        _, every = matrices_of(params, matrix_axes, sharding, name)
        rate = at_count(learning_rate, state.count)
        leaves, treedef = jax.tree.flatten(params)
        shapes = [_radius_shape(m, w) for m, w in zip(every, leaves, strict=True)]
        check_alike(name, updates, state.radius, shapes)
        steps = [
            _step(jnp.asarray(w), jnp.asarray(u), widen(radius), rate, matrices)
            for w, u, radius, matrices in zip(
                leaves,
                jax.tree.leaves(updates),
                jax.tree.leaves(state.radius),
                every,
                strict=True,
            )
        ]
        return jax.tree.unflatten(treedef, steps), HyperballState(
            count=optax.safe_increment(state.count), radius=state.radius
        )

    return optax.GradientTransformation(init, update)


def _step(
    w: jax.Array,
    u: jax.Array,
    radius: jax.Array,
    rate: jax.typing.ArrayLike,
    matrices: Matrices,
) -> jax.Array:
    if w.size == 0:
        return w
    before, u = widen(w), widen(u)
    length = matrices.norm(u)
    after = before - rate * radius * (u / nonzero(length))
    after = after * (radius / nonzero(matrices.norm(after)))
    return (after - before).astype(w.dtype)


def _radius_shape(matrices: Matrices, leaf: jax.Array) -> tuple[int, ...]:
    return dataclasses.replace(matrices.view, shape=jnp.shape(leaf)).norms_shape


def _check_radii(params: Any, radii: Sequence[jax.Array]) -> None:
    """Raise for matrices of zeros: now if their values are known, else at run time."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = [path_name(path) for path in paths]

    def check(radii: Sequence[Any]) -> None:
        zeros = [
            f"  {name}: {np.count_nonzero(np.asarray(radius) == 0)} of {radius.size}"
            for name, radius in zip(names, radii, strict=True)
            if radius.size and np.any(np.asarray(radius) == 0)
        ]
        if zeros:
            raise ValueError(
                "step_on_hyperball keeps each matrix's initial norm, but these leaves "
                "hold matrices of zeros (how many of them):\n"
                + "\n".join(zeros)
                + "\nInitialize them otherwise, or send them to another optimizer with "
                "matrix_axes."
            )

    if all(_is_known(radius) for radius in radii):
        check(radii)
    else:
        jax.jit(lambda radii: jax.debug.callback(check, radii))(list(radii))


def _is_known(x: jax.Array) -> bool:
    """Whether this process can read it now."""
    return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable
