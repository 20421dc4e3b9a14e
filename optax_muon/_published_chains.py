"""Published optimizers that are other chains of parts, with their authors' values."""

from typing import Any

import optax

from optax_muon import _checks
from optax_muon._common import Common
from optax_muon._decay import add_weight_decay, decay_mask, times
from optax_muon._functions import OrthogonalizerLike
from optax_muon._hyperball import step_on_hyperball
from optax_muon._normalize import normalize_neurons
from optax_muon._norms import snap_frobenius
from optax_muon._orthogonalize import orthogonalize_updates
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._presets import preset
from optax_muon._recipes import muon
from optax_muon._scaling import scale_by_shape
from optax_muon._soap import scale_by_soap

_KELLER_JORDAN = NewtonSchulz("keller_jordan")


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
    momentum=0.95,
    momentum_form="heavy_ball",
    orthogonalizer=_KELLER_JORDAN,
    adam_learning_rate=8e-3,
    adam_b2=0.98,
    adam_eps=1e-15,
)
def muon_hyperball(
    common: Common, orthogonalizer: OrthogonalizerLike, **momentum: Any
) -> optax.GradientTransformationExtraArgs:
    """MuonH: Muon on the sphere of each matrix's initial norm (arXiv 2606.16899).

    The rate is about the angle by which a matrix turns in a step, in radians; scale and
    weight decay would have no effect on a sphere: see `step_on_hyperball`, also for the
    error about matrices of zeros. The values are those of its authors' sweeps for 130M
    parameters; they put the output head on a sphere as well, with Adam's directions,
    where here it has plain Adam.

    >>> tx = muon_hyperball(0.01)
    """
    return common.with_adamw(
        "muon_hyperball",
        common.directions(orthogonalizer, **momentum),
        common.normalize(),
        step_on_hyperball(common.learning_rate),
    )


@preset(
    muon,
    without=("momentum", "normalizer", "scale", "weight_decay_form"),
    learning_rate=0.023,
    orthogonalizer=NewtonSchulz("polar_express_modded"),
    weight_decay=1.2,
    cautious=True,
    adam_learning_rate=8e-3,
    adam_b1=0.5,
    adam_eps=1e-10,
    adam_weight_decay=0.75,
)
def speedrun(
    common: Common,
    orthogonalizer: OrthogonalizerLike,
    *,
    total_steps: int | None = None,
    beta2: _checks.Scalar = 0.9,
    **momentum: Any,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of modded-nanogpt's track 1, as of its record of 2026-04-09.

    NorMuon with cautious decay: W loses decay * learning_rate^2 of itself, times the
    scale sqrt(max(1, out/in)). Momentum grows from 0.85 to 0.95 in 300 steps and, if
    `total_steps` tells which they are, falls back in the last 50. AdamW has the values
    of its embedding and head, and decays by its own rate squared, cautiously as well.
    The record further doubles the rate of MLP outputs, gives each group of vectors its
    own values, and updates them every other step.

    Args:
      total_steps: of the training, at least 350; None for no fall of the momentum.
      beta2: as in `normalize_neurons`.

    >>> tx = speedrun(total_steps=5000)
    """
    decay = add_weight_decay(
        times(common.weight_decay, common.learning_rate),
        cautious=common.cautious,
        mask=decay_mask("weight_decay_mask", common.weight_decay_mask),
    )
    return common.with_adamw(
        "speedrun",
        common.directions(
            orthogonalizer, momentum=_speedrun_momentum(total_steps), **momentum
        ),
        normalize_neurons(beta2),
        decay,  # before the scale, which it thereby has, too
        scale_by_shape("width"),
        optax.scale_by_learning_rate(common.learning_rate),
        cautious=common.cautious,
        weight_decay_form="lr_squared",
    )


def _speedrun_momentum(total_steps: int | None) -> optax.Schedule:
    rise = optax.linear_schedule(0.85, 0.95, 300)
    if total_steps is None:
        return rise
    # Momentum grows in 300 steps and falls in 50.
    fits = isinstance(total_steps, int) and total_steps >= 350
    wanted = "an int of at least 350, or None for a momentum that does not fall"
    _checks.check_compiled_in("total_steps", total_steps, fits, wanted)
    fall = optax.linear_schedule(0.95, 0.85, 50)
    return optax.join_schedules([rise, fall], [total_steps - 50])


# Ten of K. Jordan's steps and two cubic ones: the authors' v1 and v2.
_SOAP_ROWS = ((3.4445, -4.7750, 2.0315),) * 10 + ((1.5, -0.5, 0.0),) * 2


@preset(
    muon,
    without=("momentum_form", "preconditioner", "normalizer", "scale"),
    learning_rate=0.02,
    momentum=0.95,
    orthogonalizer=NewtonSchulz(_SOAP_ROWS),
    adam_learning_rate=4e-3,
)
def soap_muon(
    common: Common,
    orthogonalizer: OrthogonalizerLike,
    *,
    beta2: _checks.Scalar = 0.98,
    frequency: int = 40,
    one_sided: bool = True,
    **momentum: Any,
) -> optax.GradientTransformationExtraArgs:
    """SOAP-Muon: momentum in Shampoo's eigenbasis, then its polar factor.

    Vyas, Zhao, Morwani, Kwun, Kakade, Improving SOAP using Iterative Whitening and
    Muon, 2025. Rate, frequency and Newton-Schulz are those of the authors' experiments
    on nanoGPT (github.com/nikhilvyas/SOAP_MUON, v2), beta2 that of their v1. Left out
    are v2's square root of the entries' size, and its rate of 0.4 for embeddings: AdamW
    has the head's. Every matrix steps by sqrt(min(in, out)) sqrt(max(1, out / in)) in
    Frobenius norm. The state holds a `SoapState`, and no `MuonState` for `find_state`.

    Args:
      beta2, frequency, one_sided: as in `scale_by_soap`, which `momentum`, `nesterov`
        and `momentum_dtype` go to as well.

    >>> tx = soap_muon(frequency=10)
    """
    return common.with_adamw(
        "soap_muon",
        scale_by_soap(
            beta2=beta2,
            frequency=frequency,
            one_sided=one_sided,
            **momentum,
        ),
        orthogonalize_updates(orthogonalizer),
        snap_frobenius(),
        scale_by_shape("width"),
        *common.decay_and_rate(),
    )
