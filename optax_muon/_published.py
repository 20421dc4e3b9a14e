"""Published optimizers that are `muon` with their authors' values.

What a source leaves open, or does beyond that, stands in the docstring, to which
`preset` adds the defaults. Learning rates are those of the source: for its model sizes
and batches.
"""

import math
from typing import Any

import optax

from optax_muon import _checks
from optax_muon._normalize import normalize_neurons
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._presets import preset
from optax_muon._qk_clip import qk_clip
from optax_muon._qk_rules import QKRule
from optax_muon._recipes import muon

_KELLER_JORDAN = NewtonSchulz("keller_jordan")


@preset(
    muon,
    learning_rate=0.02,
    momentum=0.95,
    scale="width",
    orthogonalizer=_KELLER_JORDAN,
    adam_learning_rate=3e-4,
    adam_eps=1e-10,
)
def keller_jordan(**arguments: Any) -> optax.GradientTransformationExtraArgs:
    """Muon as first published (K. Jordan et al., github.com/KellerJordan/Muon, 2024).

    Scales come from declared axes: his code takes those of a convolution from its
    window, which is 1 for square ones.

    >>> tx = keller_jordan(weight_decay=0.01)  # as in his README's example
    """
    return muon(**arguments)


@preset(
    muon,
    learning_rate=4.2e-4,
    momentum=0.95,
    momentum_form="heavy_ball",
    scale="adam_rms",
    orthogonalizer=_KELLER_JORDAN,
    weight_decay=0.1,
)
def moonlight(**arguments: Any) -> optax.GradientTransformationExtraArgs:
    """Moonlight's Muon, with AdamW's rate and decay for all (arXiv 2502.16982).

    Its equation 1 has no Nesterov term, its code has. The rate is the peak of its 16B
    model's schedule.

    >>> tx = moonlight(optax.warmup_cosine_decay_schedule(0.0, 4.2e-4, 100, 1000))
    """
    return muon(**arguments)


@preset(
    muon,
    without=("normalizer",),
    learning_rate=0.02,
    momentum=0.95,
    scale="width",
    orthogonalizer=_KELLER_JORDAN,
    adam_learning_rate=3e-4,
    adam_eps=1e-10,
)
def normuon(
    *, beta2: _checks.Scalar = 0.95, **arguments: Any
) -> optax.GradientTransformationExtraArgs:
    """NorMuon: Muon with neuron-wise second moments (arXiv 2510.05491).

    The values are those of its code, which keeps the polar factor's norm and Jordan's
    scale and rate. Algorithm 1 of the paper has no Nesterov term, steps of RMS 0.2 and
    rates such as AdamW's: see the example.

    Args:
      beta2: as in `normalize_neurons`.

    >>> from optax_muon import snap_frobenius
    >>> tx = normuon()
    >>> as_in_the_paper = muon(
    ...     3.6e-4,
    ...     momentum=0.95,
    ...     nesterov=False,
    ...     orthogonalizer=NewtonSchulz("keller_jordan"),
    ...     normalizer=optax.chain(normalize_neurons(), snap_frobenius()),
    ...     weight_decay=0.1,
    ...     adam_learning_rate=3.6e-3,
    ...     adam_weight_decay=0.0,
    ... )
    """
    return muon(normalizer=normalize_neurons(beta2), **arguments)


@preset(
    muon,
    without=("scale",),
    learning_rate=2.7e-4,
    momentum=0.95,
    momentum_form="heavy_ball",
    orthogonalizer=NewtonSchulz("deepseek_v4"),
    weight_decay=0.1,
    adam_eps=1e-20,
)
def deepseek_v4(**arguments: Any) -> optax.GradientTransformationExtraArgs:
    """DeepSeek-V4's Muon: ten steps of two polynomials, entries of RMS 0.18.

    Its technical report, section 2.4, algorithm 1, and section 4.2.2
    (arXiv 2606.19348). The rate is that of its smaller model.

    >>> tx = deepseek_v4()
    """
    return muon(scale=_deepseek_v4_scale, **arguments)


def _deepseek_v4_scale(fan_in: int, fan_out: int) -> float:
    """0.18 sqrt(max(fan_in, fan_out)): algorithm 1, gamma."""
    return 0.18 * math.sqrt(max(fan_in, fan_out))


@preset(
    muon,
    learning_rate=2e-4,
    momentum=0.95,
    momentum_form="heavy_ball",
    orthogonalizer=_KELLER_JORDAN,
    weight_decay=0.1,
)
def muon_clip(
    *,
    tau: _checks.ScalarOrSchedule = 100.0,
    alpha: _checks.Scalar = 0.5,
    qk_rule: QKRule | None = None,
    **arguments: Any,
) -> optax.GradientTransformationExtraArgs:
    """MuonClip: Moonlight's Muon, then QK-clip (Kimi K2, arXiv 2507.20534, 2.1).

    Its `update` needs params and `max_logits`, as that of `qk_clip`. The paper writes
    no Nesterov term, and does not repeat Moonlight's other values. The rate is its
    peak.

    Args:
      tau, alpha: as in `qk_clip`.
      qk_rule: `rule` there.

    >>> tx = muon_clip(tau=30.0)
    """
    return optax.with_extra_args_support(
        optax.chain(muon(**arguments), qk_clip(tau, alpha=alpha, rule=qk_rule))
    )
