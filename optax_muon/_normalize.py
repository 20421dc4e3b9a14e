"""Normalization by second moments after orthogonalization: NorMuon and AdaMuon."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._casts import at_least_float32, widen
from optax_muon._matrix_axes import MatrixView
from optax_muon._resolution import MatrixAxesLike
from optax_muon._serialization import register_state
from optax_muon._sharding import ShardingLike
from optax_muon._statistics import Matrices, matrices_of


@register_state
@chex.dataclass(frozen=True, mappable_dataclass=False)
class SecondMomentState:
    """State of `normalize_neurons` and `normalize_entries`.

    Attributes:
      second_moment: a tree like the parameters; of neurons, each fan-in axis has length
        1 (where the fan-in has parts, values are repeated along each of them, which
        takes as much memory as the momentum).
    """

    second_moment: Any


def normalize_neurons(
    beta2: _checks.Scalar = 0.95,
    *,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Divide each output neuron by its running RMS; keep each matrix's Frobenius norm.

    With O a matrix [fan_in, fan_out] of the update (NorMuon, arXiv 2510.05491):

      v <- beta2 v + (1 - beta2) mean_fan_in(O^2)
      O <- O / sqrt(v), rescaled to the Frobenius norm that O had

    The axis is the declared fan-out, whichever side is longer. Chain it after
    `scale_by_muon(scale=None)`, or pass it as `muon(normalizer=...)`: it is meant for
    polar factors, and squares of much larger or smaller entries do not fit float32.

    Args:
      beta2: decay of the second moment, in [0, 1), a float or a scalar array; 0
        equalises the neurons' norms.
      matrix_axes: as in `scale_by_muon`; in an `optax.chain` pass the same there and
        here. Within `muon` and `route` None takes theirs, and so does sharding's None.
      sharding: likewise: second moments are laid out so, and inside a user's own
        `jax.shard_map` it tells over which mesh axes a matrix is to be summed.

    Returns:
      A transformation whose state is a `SecondMomentState`, at least float32.

    Raises:
      ValueError, TypeError: a bad `beta2`; leaves that are no matrices; gradients
        unlike the state.

    >>> tx = normalize_neurons(0.0)
    >>> o = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> print(tx.update(o, tx.init(o))[0].round(3))  # both columns sqrt(5) long
    [[2.236 0.   ]
     [0.    2.236]]
    """
    return _normalizer("normalize_neurons", beta2, True, matrix_axes, sharding)


def normalize_entries(
    beta2: _checks.Scalar = 0.95,
    *,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Divide each entry by its running RMS; keep each matrix's Frobenius norm.

    With O a matrix [fan_in, fan_out] of the update (AdaMuon, arXiv 2507.11005):

      V <- beta2 V + (1 - beta2) O^2      entry by entry
      O <- O / sqrt(V), rescaled to the Frobenius norm that O had

    AdaMuon takes the sign of its momentum before the polar factor, the momentum's own
    decay as beta2 (its code: 0.999), and gives steps entries of RMS 0.2: see the
    example. V needs as much memory as the momentum. The rescaling takes away what a
    bias correction would do, and since V holds this step's O^2, no epsilon is needed.

    Args:
      beta2, matrix_axes, sharding: as in `normalize_neurons`.

    Returns:
      A transformation whose state is a `SecondMomentState`, at least float32.

    Raises:
      ValueError, TypeError: as `normalize_neurons`.

    >>> tx = normalize_entries(0.0)
    >>> o = jnp.array([[1.0, 0.0], [7.0, 0.0]])
    >>> print(tx.update(o, tx.init(o))[0].round(3))  # still sqrt(50) long
    [[5. 0.]
     [5. 0.]]
    >>> from optax_muon import muon, snap_frobenius
    >>> adamuon = muon(
    ...     6e-4,
    ...     momentum=0.95,
    ...     momentum_form="heavy_ball",
    ...     nesterov=False,
    ...     preconditioner=optax.scale_by_sign(),
    ...     normalizer=optax.chain(normalize_entries(), snap_frobenius()),
    ...     weight_decay=0.1,
    ... )
    """
    return _normalizer("normalize_entries", beta2, False, matrix_axes, sharding)


def _normalizer(
    name: str,
    beta2: _checks.Scalar,
    by_neuron: bool,
    matrix_axes: MatrixAxesLike,
    sharding: ShardingLike,
) -> optax.GradientTransformation:
    _checks.check_coefficient("beta2", beta2)

    def merged_axes(view: MatrixView) -> tuple[int, ...]:
        return view.merged_axes if by_neuron else ()

    def shape_of_moment(view: MatrixView, shape: tuple[int, ...]) -> tuple[int, ...]:
        here = dataclasses.replace(view, shape=shape)
        return here.neurons_shape if by_neuron else shape

    def init(params: Any) -> Any:
        layout, every = matrices_of(params, matrix_axes, sharding, name)
        leaves, treedef = jax.tree.flatten(params)
        merged = [merged_axes(matrices.view) for matrices in every]
        moments = [
            # A sum of zeros, which has the leaf's type on a mesh of Explicit axes.
            jnp.zeros_like(leaf, dtype=at_least_float32(leaf.dtype)).sum(
                axes, keepdims=True
            )
            for leaf, axes in zip(leaves, merged, strict=True)
        ]
        moments = layout.without(merged).constrain(moments)
        return SecondMomentState(second_moment=jax.tree.unflatten(treedef, moments))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        _, every = matrices_of(updates, matrix_axes, sharding, name)
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, updates))
        check_alike(
            name,
            updates,
            state.second_moment,
            [
                shape_of_moment(matrices.view, leaf.shape)
                for leaf, matrices in zip(leaves, every, strict=True)
            ],
        )
        moments, moment_treedef = jax.tree.flatten(
            jax.tree.map(widen, state.second_moment)
        )
        new = [
            _normalize(leaf, moment, beta2, by_neuron, matrices)
            for leaf, moment, matrices in zip(leaves, moments, every, strict=True)
        ]
        return jax.tree.unflatten(treedef, [leaf for leaf, _ in new]), (
            SecondMomentState(
                second_moment=jax.tree.unflatten(moment_treedef, [v for _, v in new])
            )
        )

    return optax.GradientTransformation(init, update)


def _normalize(
    leaf: jax.Array,
    moment: jax.Array,
    beta2: jax.typing.ArrayLike,
    by_neuron: bool,
    matrices: Matrices,
) -> tuple[jax.Array, jax.Array]:
    if leaf.size == 0:
        return leaf, moment
    wide = leaf.astype(moment.dtype)
    power = wide**2
    if by_neuron:
        inputs = matrices.given(lambda fan_in, fan_out: max(fan_in, 1))
        power = matrices.over_inputs(power) / inputs
    moment = jnp.asarray(beta2 * moment + (1 - beta2) * power, moment.dtype)
    # What never moved has a moment of 0 and an update of 0, and keeps it.
    normalized = wide / jnp.sqrt(jnp.where(moment > 0, moment, 1))
    before, after = matrices.norm(wide), matrices.norm(normalized)
    rescaled = normalized * (before / jnp.where(after > 0, after, 1))
    return rescaled.astype(leaf.dtype), moment
