"""muon: the default recipe, a chain of parts and nothing else."""

from typing import Any

import optax

from optax_muon import _checks
from optax_muon._common import Common
from optax_muon._functions import OrthogonalizerLike
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._resolution import MatrixAxesLike
from optax_muon._scaling import ScaleRule, scale_by_shape
from optax_muon._sharding import ShardingLike


def muon(
    learning_rate: _checks.ScalarOrSchedule,
    *,
    momentum: _checks.ScalarOrSchedule = 0.9,
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
    preconditioner: optax.GradientTransformation | None = None,
    weight_decay_form: str = "decoupled",
) -> optax.GradientTransformationExtraArgs:
    """Muon for the matrices of a model, plain AdamW for everything else.

    `print(optax_muon.plan(params, matrix_axes))` shows which leaf goes where.

    Args:
      learning_rate: a float, a scalar array, or a schedule of the step. With the
        default scale steps are as long as AdamW's at that rate; 2 to 8 times the best
        of AdamW's for the same matrices was best (benchmarks/results/convergence.md).
      momentum, nesterov, momentum_form, momentum_dtype, orthogonalizer: as in
        `scale_by_muon`. On a small GPT momentum 0.9 is better than the literature's
        0.95 up to 600 steps, and alike after 1200, the longest runs measured
        (benchmarks/results/convergence.md).
      scale: as in `scale_by_muon`; "adam_rms" gives updates the size of AdamW's.
      normalizer: a transformation between orthogonalization and scale, such as
        `normalize_neurons()`, which takes the matrix_axes and sharding given here if it
        has none of its own; None for none.
      weight_decay: decay of the matrices: a float, a scalar array, or a schedule. Needs
        params in `update` unless it is the float 0.
      cautious: decay the matrices' entries only where that does not work against the
        step, as in `add_weight_decay`.
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
      preconditioner: a transformation between momentum and orthogonalization, such as
        `equilibrate()`, likewise; None for none.
      weight_decay_form: what a weight loses of itself in a step, of either optimizer:
        "decoupled" learning rate * decay, "independent" the decay itself, "lr_squared"
        learning rate^2 * decay.

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
    common = Common(
        learning_rate=learning_rate,
        normalizer=normalizer,
        preconditioner=preconditioner,
        weight_decay=weight_decay,
        cautious=cautious,
        weight_decay_mask=weight_decay_mask,
        weight_decay_form=weight_decay_form,
        matrix_axes=matrix_axes,
        sharding=sharding,
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        adam_dtype=adam_dtype,
    )
    return common.with_adamw(
        "muon",
        common.directions(
            orthogonalizer,
            momentum=momentum,
            nesterov=nesterov,
            momentum_form=momentum_form,
            momentum_dtype=momentum_dtype,
        ),
        common.normalize(),
        scale_by_shape(scale),
        *common.decay_and_rate(),
    )
