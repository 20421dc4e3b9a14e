"""Whole optimizers: chains of the parts, and nothing else."""

import math
from typing import Any

import optax

from optax_muon import _checks
from optax_muon._alike import checked_against_moments, checked_against_parameters
from optax_muon._casts import float16_as_float32, in_parameters_dtype
from optax_muon._decay import add_weight_decay
from optax_muon._functions import OrthogonalizerLike
from optax_muon._moments import keep_sharding
from optax_muon._muon import scale_by_muon
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._placement import whole_leaves
from optax_muon._resolution import ADAM, MUON, MatrixAxesLike, labels
from optax_muon._scaling import ScaleRule, scale_by_shape
from optax_muon._sharding import ShardingLike


def muon(
    learning_rate: _checks.ScalarOrSchedule,
    *,
    momentum: _checks.ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    momentum_form: str = "ema",
    momentum_dtype: Any = None,
    orthogonalizer: OrthogonalizerLike = NewtonSchulz(),
    scale: str | ScaleRule | None = "adam_rms",
    normalizer: optax.GradientTransformation | None = None,
    weight_decay: _checks.ScalarOrSchedule = 0.0,
    cautious: bool = False,
    weight_decay_mask: Any = None,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
    adam_learning_rate: _checks.ScalarOrSchedule | None = None,
    adam_b1: _checks.Scalar = 0.9,
    adam_b2: _checks.Scalar = 0.95,
    adam_eps: _checks.Scalar = 1e-8,
    adam_weight_decay: _checks.ScalarOrSchedule | None = None,
    adam_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for the matrices of a model, plain AdamW for everything else.

    `print(optax_muon.plan(params, matrix_axes))` shows which leaf goes where.

    Args:
      learning_rate: a float, a scalar array, or a schedule of the step. With the
        default scale it is comparable to AdamW's.
      momentum, nesterov, momentum_form, momentum_dtype, orthogonalizer: as in
        `scale_by_muon`.
      scale: as in `scale_by_muon`; "adam_rms" gives updates the size of AdamW's.
      normalizer: a transformation between orthogonalization and scale, such as
        `normalize_neurons(matrix_axes=matrix_axes)`, which must be told the same axes;
        None for none.
      weight_decay: decoupled decay of the matrices, times the learning rate: a float, a
        scalar array, or a schedule. Needs params in `update` unless it is the float 0.
      cautious: decay the matrices' entries only where the step shrinks them anyway.
      weight_decay_mask: tree of bools (or prefix), or a function params -> tree; False
        leaves a leaf, of either optimizer, without decay.
      matrix_axes: a rule (path, leaf) -> MatrixAxes | None, a tree (or tree prefix) of
        MatrixAxes | None, or None for `flax_matrix_axes`. None sends a leaf to AdamW.
      sharding: how all the parameters lie on a mesh, as in `scale_by_muon`; all moments
        are then laid out likewise.
      adam_learning_rate: AdamW's own; None takes `learning_rate`.
      adam_b1, adam_b2, adam_eps: AdamW's decays and epsilon; it has no Nesterov term.
      adam_weight_decay: AdamW's own; None takes `weight_decay`.
      adam_dtype: dtype of AdamW's first moment; None keeps each parameter's own, but
        float32 for float16. Its second moment of float16 is float32, too: eps and
        squares underflow in float16.

    Returns:
      The transformation; `find_state` finds the `MuonState` in its state. Updates have
      the parameters' dtype (without params in `update`, the gradients').

    Raises:
      ValueError, TypeError: bad arguments; at init, one error that lists every leaf
        that no rule decides, with path, shape and remedy.

    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.eye(4, 8), "bias": jnp.zeros(8)}}
    >>> tx = muon(0.01, weight_decay=0.1)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(params, state, params)
    >>> params = optax.apply_updates(params, updates)

    References:
      Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
      Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982, 2025.
      Loshchilov, Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101.
    """
    _check_rates(learning_rate, adam_learning_rate, adam_b1, adam_b2, adam_eps)
    if normalizer is not None and not isinstance(
        normalizer, optax.GradientTransformation
    ):
        raise TypeError(
            f"normalizer={normalizer!r} is no optax.GradientTransformation; pass one, "
            "such as optax_muon.normalize_neurons(), or None."
        )
    matrices = optax.chain(
        scale_by_muon(
            momentum,
            nesterov=nesterov,
            momentum_form=momentum_form,
            momentum_dtype=momentum_dtype,
            orthogonalizer=orthogonalizer,
            scale=None,
            matrix_axes=matrix_axes,
            sharding=sharding,
        ),
        optax.identity() if normalizer is None else normalizer,
        scale_by_shape(scale, matrix_axes, sharding),
        add_weight_decay(weight_decay, cautious=cautious, mask=weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    others = optax.chain(
        optax.scale_by_adam(
            adam_b1,
            adam_b2,
            adam_eps,
            mu_dtype=_checks.float_dtype("adam_dtype", adam_dtype),
        ),
        add_weight_decay(
            weight_decay if adam_weight_decay is None else adam_weight_decay,
            mask=weight_decay_mask,
        ),
        optax.scale_by_learning_rate(
            learning_rate if adam_learning_rate is None else adam_learning_rate
        ),
    )
    routed = optax.partition(
        {
            MUON: matrices,
            ADAM: keep_sharding(
                checked_against_moments(float16_as_float32(others)), sharding, "muon"
            ),
        },
        lambda tree: labels(whole_leaves(tree, sharding, "muon")[1], matrix_axes),
    )
    return in_parameters_dtype(checked_against_parameters("muon", routed))


def _check_rates(
    learning_rate: Any, adam_learning_rate: Any, b1: Any, b2: Any, eps: Any
) -> None:
    _checks.check_scalar("learning_rate", learning_rate)
    if adam_learning_rate is not None:
        _checks.check_scalar("adam_learning_rate", adam_learning_rate)
    _checks.check_coefficient("adam_b1", b1)
    _checks.check_coefficient("adam_b2", b2)
    _checks.check_coefficient("adam_eps", eps, below=math.inf)
