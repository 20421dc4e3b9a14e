"""Published optimizers, as recipes with their authors' values.

Each is `muon` with other defaults, or another chain of the same parts; what a source
leaves open, or does beyond that, stands in the docstring. Learning rates are those of
the source: for its model sizes and batches.
"""

import math
from typing import Any

import optax

from optax_muon import _checks
from optax_muon._alike import checked_against_parameters
from optax_muon._casts import in_parameters_dtype
from optax_muon._decay import add_weight_decay
from optax_muon._functions import OrthogonalizerLike
from optax_muon._hyperball import step_on_hyperball
from optax_muon._lmo import scale_by_lmo
from optax_muon._normalize import normalize_neurons
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._presets import preset
from optax_muon._recipes import adamw, check_part, check_rates, muon, polar_steps
from optax_muon._route import route
from optax_muon._sharding import ShardingLike
from optax_muon._trace import accumulate_momentum

_KELLER_JORDAN = NewtonSchulz("keller_jordan")


@preset(
    muon,
    learning_rate=0.02,
    scale="width",
    orthogonalizer=_KELLER_JORDAN,
    adam_learning_rate=3e-4,
    adam_eps=1e-10,
)
def keller_jordan(**arguments: Any) -> optax.GradientTransformationExtraArgs:
    """Muon as first published (K. Jordan et al., github.com/KellerJordan/Muon, 2024).

    Arguments as `muon`'s. Scales come from declared axes: his code takes those of a
    convolution from its window, which is 1 for square ones.
    """
    return muon(**arguments)


@preset(
    muon,
    learning_rate=4.2e-4,
    momentum_form="heavy_ball",
    scale="adam_rms",
    orthogonalizer=_KELLER_JORDAN,
    weight_decay=0.1,
)
def moonlight(**arguments: Any) -> optax.GradientTransformationExtraArgs:
    """Moonlight's Muon, with AdamW's rate and decay for all (arXiv 2502.16982).

    Arguments as `muon`'s. Its equation 1 has no Nesterov term, its code has. The rate
    is the peak of its 16B model's schedule.
    """
    return muon(**arguments)


@preset(
    muon,
    without=("normalizer",),
    learning_rate=0.02,
    scale="width",
    orthogonalizer=_KELLER_JORDAN,
    adam_learning_rate=3e-4,
    adam_eps=1e-10,
)
def normuon(
    *, beta2: float = 0.95, **arguments: Any
) -> optax.GradientTransformationExtraArgs:
    """NorMuon: Muon with neuron-wise second moments (arXiv 2510.05491).

    Arguments as `muon`'s but for `normalizer`; `beta2` as in `normalize_neurons`. The
    values are those of its code, which keeps the polar factor's norm and Jordan's scale
    and rate. Algorithm 1 of the paper has no Nesterov term, steps of RMS 0.2 and rates
    such as AdamW's: `muon(3.6e-4, nesterov=False, weight_decay=0.1,
    adam_weight_decay=0.0, normalizer=optax.chain(normalize_neurons(),
    snap_frobenius()))`.
    """
    normalizer = normalize_neurons(
        beta2, matrix_axes=arguments["matrix_axes"], sharding=arguments["sharding"]
    )
    return muon(normalizer=normalizer, **arguments)


@preset(
    muon,
    without=("scale",),
    learning_rate=2.7e-4,
    momentum_form="heavy_ball",
    orthogonalizer=NewtonSchulz("deepseek_v4"),
    weight_decay=0.1,
    adam_eps=1e-20,
)
def deepseek_v4(**arguments: Any) -> optax.GradientTransformationExtraArgs:
    """DeepSeek-V4's Muon: ten steps of two polynomials, entries of RMS 0.18.

    Its technical report, section 2.4, algorithm 1, and section 4.2.2
    (arXiv 2606.19348). Arguments as `muon`'s but for `scale`. The rate is that of its
    smaller model.
    """
    return muon(scale=_deepseek_v4_scale, **arguments)


def _deepseek_v4_scale(fan_in: int, fan_out: int) -> float:
    """0.18 sqrt(max(fan_in, fan_out)): algorithm 1, gamma."""
    return 0.18 * math.sqrt(max(fan_in, fan_out))


@preset(
    muon,
    without=(
        "scale",
        "weight_decay",
        "cautious",
        "weight_decay_mask",
        "weight_decay_form",
        "adam_weight_decay",
    ),
    learning_rate=0.02,
    momentum_form="heavy_ball",
    orthogonalizer=_KELLER_JORDAN,
    adam_learning_rate=8e-3,
    adam_b2=0.98,
    adam_eps=1e-15,
)
def muon_hyperball(
    *,
    learning_rate: _checks.ScalarOrSchedule,
    orthogonalizer: OrthogonalizerLike,
    normalizer: optax.GradientTransformation | None,
    preconditioner: optax.GradientTransformation | None,
    matrix_axes: Any,
    sharding: ShardingLike,
    adam_learning_rate: _checks.ScalarOrSchedule,
    adam_b1: _checks.Scalar,
    adam_b2: _checks.Scalar,
    adam_eps: _checks.Scalar,
    adam_dtype: Any,
    **momentum: Any,
) -> optax.GradientTransformationExtraArgs:
    """MuonH: Muon on the sphere of each matrix's initial norm (arXiv 2606.16899).

    Arguments as `muon`'s but for scale and weight decay, which have no effect on a
    sphere; see `step_on_hyperball`. The values are those of its authors' sweeps for
    130M parameters; they put the output head on a sphere as well, with Adam's
    directions, where here it has plain Adam.
    """
    check_rates(learning_rate, adam_learning_rate, adam_b1, adam_b2, adam_eps)
    check_part("normalizer", normalizer, "normalize_neurons()")
    check_part("preconditioner", preconditioner, "equilibrate()")
    matrices = optax.chain(
        polar_steps(preconditioner, orthogonalizer, matrix_axes, sharding, **momentum),
        optax.identity() if normalizer is None else normalizer,
        step_on_hyperball(learning_rate, matrix_axes=matrix_axes, sharding=sharding),
    )
    others = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        adam_eps,
        dtype=adam_dtype,
    )
    return route(matrices, others, matrix_axes=matrix_axes, sharding=sharding)


def scion(
    learning_rate: _checks.ScalarOrSchedule = 3.6e-4,
    *,
    momentum: _checks.ScalarOrSchedule = 0.9,
    momentum_dtype: Any = None,
    norm_balls: Any = None,
    constrained: bool = True,
    orthogonalizer: OrthogonalizerLike = _KELLER_JORDAN,
    sharding: ShardingLike = None,
) -> optax.GradientTransformationExtraArgs:
    """Scion: a norm ball for every leaf, and no Adam (arXiv 2502.07529, algorithm 3).

      M <- mu M + (1 - mu) G
      W <- (1 - learning_rate) W - learning_rate radius L(M)      (constrained)
      W <- W - learning_rate radius L(M)                          (unconstrained)

    Args:
      learning_rate: a float, a scalar array, or a schedule; that of its nanoGPT.
      momentum: mu, 1 - alpha of the paper.
      momentum_dtype: as in `scale_by_muon`.
      norm_balls: norms and radii, as in `scale_by_lmo`; None for `flax_norm_balls()`.
      constrained: whether weights stay in the balls, if they begin there.
      orthogonalizer, sharding: as in `scale_by_muon`.

    Returns:
      The transformation. If constrained, its `update` needs params.

    Raises:
      ValueError, TypeError: bad arguments; at init, leaves that have no norm ball.
    """
    _checks.check_scalar("learning_rate", learning_rate)
    _checks.check_bool("constrained", constrained)
    chain = optax.with_extra_args_support(
        optax.chain(
            accumulate_momentum(
                momentum,
                nesterov=False,
                momentum_dtype=momentum_dtype,
                sharding=sharding,
            ),
            scale_by_lmo(norm_balls, orthogonalizer=orthogonalizer, sharding=sharding),
            add_weight_decay(1.0 if constrained else 0.0),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
    return in_parameters_dtype(checked_against_parameters("scion", chain))


@preset(
    muon,
    without=("momentum", "normalizer"),
    learning_rate=0.023,
    orthogonalizer=NewtonSchulz("polar_express_modded"),
    scale="width",
    weight_decay=1.2,
    weight_decay_form="lr_squared",
    cautious=True,
    adam_learning_rate=8e-3,
    adam_b1=0.5,
    adam_eps=1e-10,
    adam_weight_decay=0.75,
)
def speedrun(
    *, total_steps: int | None = None, beta2: float = 0.9, **arguments: Any
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of modded-nanogpt's track 1, as of its record of 2026-04-09.

    NorMuon with cautious decay tied to the squared rate. Momentum grows from 0.85 to
    0.95 in 300 steps and, if `total_steps` tells which they are, falls back in the last
    50. Arguments as `muon`'s but for `momentum` and `normalizer`; `beta2` as in
    `normalize_neurons`. AdamW has the values of its embedding and head. The record
    further doubles the rate of MLP outputs, gives each group of vectors its own values,
    and updates them every other step.
    """
    normalizer = normalize_neurons(
        beta2, matrix_axes=arguments["matrix_axes"], sharding=arguments["sharding"]
    )
    return muon(
        momentum=_speedrun_momentum(total_steps), normalizer=normalizer, **arguments
    )


def _speedrun_momentum(total_steps: int | None) -> optax.Schedule:
    rise = optax.linear_schedule(0.85, 0.95, 300)
    if total_steps is None:
        return rise
    if not isinstance(total_steps, int) or total_steps < 350:
        raise ValueError(
            f"total_steps={total_steps!r} must be an int of at least 350: 300 steps in "
            "which momentum grows, and 50 in which it falls; or None for no fall."
        )
    fall = optax.linear_schedule(0.95, 0.85, 50)
    return optax.join_schedules([rise, fall], [total_steps - 50])
