"""Scion, a published optimizer without matrices and others: all leaves step alike."""

from typing import Any

import optax

from optax_muon import _checks
from optax_muon._alike import checked_against_parameters
from optax_muon._casts import in_parameters_dtype
from optax_muon._decay import add_weight_decay
from optax_muon._functions import OrthogonalizerLike
from optax_muon._lmo import scale_by_lmo
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._sharding import ShardingLike
from optax_muon._trace import accumulate_momentum


def scion(
    learning_rate: _checks.ScalarOrSchedule = 3.6e-4,
    *,
    momentum: _checks.ScalarOrSchedule = 0.9,
    momentum_dtype: Any = None,
    norm_balls: Any = None,
    constrained: bool = True,
    orthogonalizer: OrthogonalizerLike = NewtonSchulz("keller_jordan"),
    sharding: ShardingLike = None,
) -> optax.GradientTransformationExtraArgs:
    """Scion: a norm ball for every leaf, and no Adam (arXiv 2502.07529, algorithm 3).

      M <- mu M + (1 - mu) G
      W <- (1 - learning_rate) W - learning_rate radius L(M)      (constrained)
      W <- W - learning_rate radius L(M)                          (unconstrained)

    Args:
      learning_rate: a float, a scalar array, or a schedule. Rate, momentum and the
        radii for a tied embedding, `flax_norm_balls(tied=True)`, are its nanoGPT's.
      momentum: mu, 1 - alpha of the paper.
      momentum_dtype: as in `scale_by_muon`.
      norm_balls: norms and radii, as in `scale_by_lmo`; None for `flax_norm_balls()`.
      constrained: whether weights stay in the balls, if they begin there.
      orthogonalizer, sharding: as in `scale_by_muon`.

    Returns:
      The transformation. If constrained, its `update` needs params.

    Raises:
      ValueError, TypeError: bad arguments; at init, leaves that have no norm ball.

    >>> from optax_muon import flax_norm_balls
    >>> tx = scion(norm_balls=flax_norm_balls(tied=True))

    References:
      Pethick et al., Training Deep Learning Models with Norm-Constrained LMOs,
      arXiv 2502.07529, 2025.
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
    return checked_against_parameters("scion", in_parameters_dtype(chain))
