"""Parts that set norms of matrices, their neurons or inputs. No state."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._resolution import MatrixAxesLike
from optax_muon._sharding import ShardingLike
from optax_muon._statistics import Matrices, on_matrices

SIDES = ("fan_out", "fan_in", "both")


def equilibrate(
    side: str = "fan_out",
    *,
    strength: _checks.Scalar = 1.0,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Balance neurons before orthogonalization (MuonEq, arXiv 2603.28254).

    With D a matrix [fan_in, fan_out] of directions, r_j the norm of its column j (what
    output neuron j weighs its inputs by) and c_i that of its row i:

      D_ij <- D_ij / r_j^s      ("fan_out": MuonEq's R, which its authors recommend)
      D_ij <- D_ij / c_i^s      ("fan_in": its C)
      D_ij <- D_ij / (r_j c_i)^s, both of the D that came      ("both": its RC)

    Chain it between `accumulate_momentum` and `orthogonalize_updates`, or pass it as
    `muon(preconditioner=...)`. Neurons of norm zero stay zero. The paper adds 1e-8 to
    squared norms; here nothing is added, so that the step does not depend on the
    gradients' magnitude.

    Args:
      side: whose norms are balanced: "fan_out", "fan_in" or "both".
      strength: s; 0 changes nothing, 1 makes all norms of the side equal.
      matrix_axes, sharding: as in `normalize_neurons`.

    Returns:
      A transformation without state; updates keep shape and dtype.

    Raises:
      ValueError, TypeError: bad arguments; leaves that are no matrices.

    >>> tx = equilibrate()
    >>> x = jnp.array([[3.0, 0.0], [4.0, 2.0]])
    >>> print(tx.update(x, tx.init(x))[0])
    [[0.6 0. ]
     [0.8 1. ]]
    """
    _checks.check_choice("side", side, SIDES)
    _checks.check_coefficient("strength", strength, below=math.inf)

    def balanced(x: jax.Array, matrices: Matrices) -> jax.Array:
        result = x
        if side != "fan_in":
            result = result / _power(matrices.norm_over_inputs(x), strength)
        if side != "fan_out":
            result = result / _power(matrices.norm_over_outputs(x), strength)
        return result

    return on_matrices("equilibrate", balanced, matrix_axes, sharding)


def snap_frobenius(
    norm: Callable[[int, int], float] | None = None,
    *,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Give each matrix the Frobenius norm of a polar factor, sqrt(min(in, out)).

    Newton-Schulz leaves singular values near 1, above or below by its coefficients;
    after this, steps are equally large whichever are used. Followed by the scale
    "adam_rms", the root mean square of a step's entries is 0.2: the alignment of
    AdaMuon (arXiv 2507.11005) and of NorMuon's paper (arXiv 2510.05491, algorithm 1).

    Args:
      norm: a function (fan_in, fan_out) -> norm, for another one than that.
      matrix_axes, sharding: as in `normalize_neurons`.

    Returns:
      A transformation without state; updates keep shape and dtype. Zeros stay zeros.

    Raises:
      TypeError: `norm` is no function. ValueError: leaves that are no matrices.

    >>> tx = snap_frobenius()
    >>> x = jnp.full((2, 2), 5.0)
    >>> print(tx.update(x, tx.init(x))[0].round(3))
    [[0.707 0.707]
     [0.707 0.707]]
    """
    if norm is not None and (not callable(norm) or isinstance(norm, type)):
        raise TypeError(
            f"norm={norm!r} must be a function (fan_in, fan_out) -> float, or None for "
            "sqrt(min(fan_in, fan_out))."
        )
    wanted = _of_a_polar_factor if norm is None else norm

    def target(fan_in: int, fan_out: int) -> float:
        value = wanted(fan_in, fan_out)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"norm={norm!r} gave {value!r} for ({fan_in}, {fan_out}); it must be a "
                "function (fan_in, fan_out) -> float."
            ) from None

    def snapped(x: jax.Array, matrices: Matrices) -> jax.Array:
        return x * (matrices.given(target) / nonzero(matrices.norm(x)))

    return on_matrices("snap_frobenius", snapped, matrix_axes, sharding)


def _of_a_polar_factor(fan_in: int, fan_out: int) -> float:
    return math.sqrt(min(fan_in, fan_out))


def _power(norm: jax.Array, strength: _checks.Scalar) -> jax.Array:
    return nonzero(norm) ** strength


def nonzero(norm: jax.Array) -> jax.Array:
    """The norm, but 1 where what it is of is zero and stays so."""
    return jnp.where(norm == 0, 1, norm)
