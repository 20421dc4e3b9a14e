"""What recipes have in common: rates, decay, axes, and AdamW beside the matrices."""

import dataclasses
import math
from typing import Any

import optax

from optax_muon import _checks
from optax_muon._alike import checked_against_moments
from optax_muon._decay import DECAY_FORMS, Stages, decay_and_rate
from optax_muon._functions import OrthogonalizerLike
from optax_muon._muon import scale_by_muon
from optax_muon._orthogonalize import orthogonalize_updates
from optax_muon._resolution import MatrixAxesLike
from optax_muon._route import routed
from optax_muon._sharding import ShardingLike
from optax_muon._trace import accumulate_momentum


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Arguments that recipes share, checked; each is documented at `muon`."""

    learning_rate: _checks.ScalarOrSchedule
    normalizer: optax.GradientTransformation | None = None
    preconditioner: optax.GradientTransformation | None = None
    weight_decay: _checks.ScalarOrSchedule = 0.0
    cautious: bool = False
    weight_decay_mask: Any = None
    weight_decay_form: str = "decoupled"
    matrix_axes: MatrixAxesLike = None
    sharding: ShardingLike = None
    adam_learning_rate: _checks.ScalarOrSchedule | None
    adam_b1: _checks.Scalar
    adam_b2: _checks.Scalar
    adam_eps: _checks.Scalar
    adam_weight_decay: _checks.ScalarOrSchedule | None = None
    adam_dtype: Any = None

    def __post_init__(self) -> None:
        _checks.check_scalar("learning_rate", self.learning_rate)
        if self.adam_learning_rate is not None:
            _checks.check_scalar("adam_learning_rate", self.adam_learning_rate)
        for name in ("weight_decay", "adam_weight_decay"):
            if getattr(self, name) is not None:
                _checks.check_scalar(name, getattr(self, name), low=0.0)
        _checks.check_bool("cautious", self.cautious)
        _checks.check_choice("weight_decay_form", self.weight_decay_form, DECAY_FORMS)
        _checks.check_coefficient("adam_b1", self.adam_b1)
        _checks.check_coefficient("adam_b2", self.adam_b2)
        _checks.check_coefficient("adam_eps", self.adam_eps, below=math.inf)
        if self.normalizer is not None:
            example = "optax_muon.normalize_neurons()"
            _checks.check_part("normalizer", self.normalizer, example)
        if self.preconditioner is not None:
            example = "optax_muon.equilibrate()"
            _checks.check_part("preconditioner", self.preconditioner, example)

    def directions(
        self, orthogonalizer: OrthogonalizerLike, **momentum: Any
    ) -> optax.GradientTransformation:
        """Momentum and polar factors: one program, if nothing comes in between."""
        if self.preconditioner is None:
            return scale_by_muon(orthogonalizer=orthogonalizer, scale=None, **momentum)
        return optax.chain(
            accumulate_momentum(**momentum),
            self.preconditioner,
            orthogonalize_updates(orthogonalizer),
        )

    def normalize(self) -> optax.GradientTransformation:
        """The part after the polar factors."""
        return optax.identity() if self.normalizer is None else self.normalizer

    def decay_and_rate(self) -> Stages:
        """The last two stages of matrices."""
        return decay_and_rate(
            self.weight_decay_form,
            self.learning_rate,
            self.weight_decay,
            cautious=self.cautious,
            mask=self.weight_decay_mask,
        )

    def with_adamw(
        self,
        name: str,
        *stages: optax.GradientTransformation,
        cautious: bool = False,
        weight_decay_form: str | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        """The recipe of that name: these stages for matrices, AdamW for the rest.

        The stages take axes and sharding from here: they have none of their own.

        Args:
          cautious, weight_decay_form: of AdamW's decay; None is the matrices' form.
        """
        rate, decay = self.adam_learning_rate, self.adam_weight_decay
        adam = optax.chain(
            optax.scale_by_adam(
                self.adam_b1,
                self.adam_b2,
                self.adam_eps,
                mu_dtype=_checks.float_dtype("adam_dtype", self.adam_dtype),
            ),
            *decay_and_rate(
                weight_decay_form or self.weight_decay_form,
                self.learning_rate if rate is None else rate,
                self.weight_decay if decay is None else decay,
                cautious=cautious,
                mask=self.weight_decay_mask,
            ),
        )
        others = checked_against_moments(adam)
        chain = optax.chain(*stages)
        return routed(name, chain, others, self.matrix_axes, self.sharding)
