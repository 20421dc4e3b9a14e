"""Normalization of output neurons after orthogonalization (NorMuon)."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._casts import at_least_float32, widen
from optax_muon._resolution import MatrixAxesLike, matrix_views
from optax_muon._routing import MatrixView
from optax_muon._serialization import register_state


@register_state
@chex.dataclass(frozen=True, mappable_dataclass=False)
class NeuronState:
    """State of `normalize_neurons`.

    Attributes:
      second_moment: a tree like the parameters, each fan-in axis of length 1.
    """

    second_moment: Any


def normalize_neurons(
    beta2: float = 0.95, *, matrix_axes: MatrixAxesLike = None
) -> optax.GradientTransformation:
    """Divide each output neuron by its running RMS; keep each matrix's Frobenius norm.

    With O a matrix [fan_in, fan_out] of the update (NorMuon, arXiv 2510.05491):

      v <- beta2 v + (1 - beta2) mean_fan_in(O^2)
      O <- O / sqrt(v), rescaled to the Frobenius norm that O had

    The axis is the declared fan-out, whichever side is longer. Chain it after
    `scale_by_muon(scale=None)`, or pass it as `muon(normalizer=...)`: it is meant for
    polar factors, and squares of much larger or smaller entries do not fit float32.

    Args:
      beta2: decay of the second moment, in [0, 1); 0 equalises the neurons' norms.
      matrix_axes: as in `scale_by_muon`; pass the same there and here.

    Returns:
      A transformation whose state is a `NeuronState`, at least float32.

    Raises:
      ValueError, TypeError: a bad `beta2`; leaves that are no matrices; gradients
        unlike the state.

    >>> tx = normalize_neurons(0.0)
    >>> o = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> print(tx.update(o, tx.init(o))[0].round(3))  # both columns sqrt(5) long
    [[2.236 0.   ]
     [0.    2.236]]
    """
    _checks.check_coefficient("beta2", beta2)

    def init(params: Any) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        views = matrix_views(params, matrix_axes, "normalize_neurons")
        moments = [
            jnp.zeros(view.neurons_shape, at_least_float32(leaf.dtype))
            for leaf, view in zip(leaves, views, strict=True)
        ]
        return NeuronState(second_moment=jax.tree.unflatten(treedef, moments))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        views = matrix_views(updates, matrix_axes, "normalize_neurons")
        check_alike(
            "normalize_neurons",
            updates,
            state.second_moment,
            [view.neurons_shape for view in views],
        )
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, updates))
        moments, moment_treedef = jax.tree.flatten(
            jax.tree.map(widen, state.second_moment)
        )
        new = [
            _normalize(leaf, moment, beta2, view)
            for leaf, moment, view in zip(leaves, moments, views, strict=True)
        ]
        return jax.tree.unflatten(treedef, [leaf for leaf, _ in new]), NeuronState(
            second_moment=jax.tree.unflatten(moment_treedef, [v for _, v in new])
        )

    return optax.GradientTransformation(init, update)


def _normalize(
    leaf: jax.Array, moment: jax.Array, beta2: jax.typing.ArrayLike, view: MatrixView
) -> tuple[jax.Array, jax.Array]:
    if leaf.size == 0:
        return leaf, moment
    wide = leaf.astype(moment.dtype)
    power = jnp.mean(wide**2, axis=view.fan_in_axes, keepdims=True)
    moment = jnp.asarray(beta2 * moment + (1 - beta2) * power, moment.dtype)
    # A neuron that never moved has v = 0 and an update of 0, and keeps it.
    normalized = wide / jnp.sqrt(jnp.where(moment > 0, moment, 1))
    matrix = view.fan_in_axes + view.fan_out_axes
    before, after = (
        jnp.sqrt(jnp.sum(x**2, axis=matrix, keepdims=True)) for x in (wide, normalized)
    )
    rescaled = normalized * (before / jnp.where(after > 0, after, 1))
    return rescaled.astype(leaf.dtype), moment
