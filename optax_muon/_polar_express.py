"""Polar Express: minimax quintics, each the best for the interval the last one left.

Amsel et al., The Polar Express, arXiv 2505.16932, 2025: a greedy composition of Remez
solutions is the best composition there is; cushion and recentring as in their code.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from optax_muon._polynomials import CoefficientTable, Row, deflate, evaluate

# An l / u closer to 1 has converged (the paper's code). The best error on 1 -+ d is
# 5/8 d^3, here 1e-17: to float64's last digit, the limit is the answer.
_CONVERGED = 1 - 5e-6
# Convergence is quadratic: measured, q and r stand still to float64's last digits after
# five exchanges, for any l / u from 1e-300 to 1 - 6e-6.
_EXCHANGES = 6


def polar_express_coefficients(
    steps: int, lower: float = 1e-3, cushion: float = 0.024, safety: float = 1.01
) -> CoefficientTable:
    """Rows for `steps` steps that bring singular values in [lower, 1] closest to 1.

    From l = lower, u = 1, each step takes the odd quintic p that minimises
    max |1 - p(s)| over s in [max(l, cushion u), u], scales it so that
    p(l) + p(u) = 2, and goes on with l <- p(l), u <- 2 - l. Once l and u meet, p is
    the limit (15/8) s - (10/8) s^3 + (3/8) s^5 of s / u.

    Every row (a, b, c) then becomes (a/safety, b/safety^3, c/safety^5), since minimax
    quintics explode just above u, where rounding may put a singular value. Rows of the
    limit stay as they are: 1 is their fixed point, and they bear 1.5 by themselves.

    Args:
      steps: how many rows. An iteration of more steps repeats the last one, so ask for
        as many as will run.
      lower: the smallest normalised singular value that is to reach 1, in (0, 1).
      cushion: in [0, 1); no step is fitted below `cushion` times its own u, where
        gaining a little would cost much above. 0 is the bare minimax composition.
      safety: in [1, 2); 1.05 for Gram iterations in 16 bits. 1 gives the paper's own
        rows, which have no margin for rounding: they are computed here, but refused
        where they would run, by `NewtonSchulz`.

    Returns:
      A table of `steps` rows, for `NewtonSchulz(coefficients=...)`.

    Raises:
      TypeError: an argument that is no number.
      ValueError: an argument out of its range.

    >>> table = polar_express_coefficients(3, lower=1e-2, safety=1.05)
    >>> [round(a, 3) for a, b, c in table]
    [7.609, 3.47, 2.544]

    References:
      Amsel et al., The Polar Express, arXiv 2505.16932, 2025.
    """
    _check_steps(steps)
    _check("lower", lower, lambda x: 0 < x < 1, "between 0 and 1: inputs are in (0, 1]")
    _check("cushion", cushion, lambda x: 0 <= x < 1, "in [0, 1): a fraction of u")
    _check("safety", safety, lambda x: 1 <= x < 2, "in [1, 2): 1.05 is ample")
    return CoefficientTable(
        rows=_compose(int(steps), float(lower), float(cushion), float(safety)),
        steps=int(steps),
        source="Amsel et al. 2025, arXiv 2505.16932, computed with "
        f"lower={lower}, cushion={cushion}, safety={safety}",
    )


def _compose(
    steps: int, lower: float, cushion: float, safety: float
) -> tuple[Row, ...]:
    upper = 1.0
    rows = []
    for _ in range(steps):
        converged = lower >= _CONVERGED * upper
        row = _minimax(max(lower, cushion * upper), upper)
        row = _recentred(row, lower, upper)
        rows.append(row if converged else deflate(row, safety))
        lower = evaluate(row, lower)
        upper = 2 - lower
    return tuple(rows)


def _recentred(row: Row, lower: float, upper: float) -> Row:
    """A multiple of p with p(l) + p(u) = 2; p itself unless a cushion raised l."""
    a, b, c = row
    scale = 2 / (evaluate(row, lower) + evaluate(row, upper))
    return scale * a, scale * b, scale * c


def _minimax(lower: float, upper: float) -> Row:
    """The odd quintic that minimises max |1 - p| on [l, u], by Remez exchange.

    1 - p attains its extreme +E, -E, +E, -E at l < q < r < u, where p'(q) = p'(r) = 0:
    one solves for p and E at guessed q, r, and takes the solution's own q, r next.

    In y = s / m, m = (l + u) / 2, and z = y^2 - 1, the limit is y (1 - z/2 + 3 z^2/8).
    The unknown is the small difference to it, y (alpha + beta z + gamma z^2): solved
    for a, b, c, the system would lose all its digits as l / u tends to 1.
    """
    if lower >= _CONVERGED * upper:
        return deflate((15 / 8, -10 / 8, 3 / 8), upper)
    middle = (lower + upper) / 2
    y = np.array([lower, (3 * lower + upper) / 4, (lower + 3 * upper) / 4, upper])
    y /= middle  # the extrema of Chebyshev's T_3, and the solution as l tends to u
    for _ in range(_EXCHANGES):
        alpha, beta, gamma = _levelled(y)
        y[1:3] = _extrema(alpha, beta, gamma)
    a, b, c = 1 + alpha, -1 / 2 + beta, 3 / 8 + gamma  # of y, y z, y z^2
    return deflate((float(a - b + c), float(b - 2 * c), float(c)), middle)


def _levelled(y: np.ndarray) -> np.ndarray:
    """alpha, beta, gamma for which 1 - p alternates between E and -E on the four y."""
    z = (y - 1) * (y + 1)
    width = z[-1]
    system = np.stack([y, y * z / width, y * (z / width) ** 2, [1, -1, 1, -1]], axis=1)
    # What the limit leaves of 1, factored so that it keeps its digits near y = 1.
    error = (1 - y) ** 3 * (8 + 9 * y + 3 * y**2) / 8
    return np.linalg.solve(system, error)[:3] / width ** np.arange(3)


def _extrema(alpha: float, beta: float, gamma: float) -> np.ndarray:
    """q and r: where dp/dy = alpha + 2 beta + (3 beta + 4 gamma) z + 5 c z^2 is 0."""
    constant = alpha + 2 * beta
    linear = 3 * beta + 4 * gamma
    square = 15 / 8 + 5 * gamma
    root = math.sqrt(linear**2 - 4 * constant * square)
    return np.sqrt(1 + (-linear + np.array([-root, root])) / (2 * square))


def _check_steps(steps: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
        raise ValueError(
            f"steps={steps!r} must be a positive int: one row is computed for each "
            "step that will run; 5 is usual."
        )


def _check(argument: str, value: Any, valid: Callable[[Any], bool], span: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{argument}={value!r} has type {type(value).__name__}; pass a float: the "
            "rows are computed on the host, when the optimizer is built."
        )
    if not valid(value):
        raise ValueError(f"{argument}={value!r} is out of range; it must be {span}.")
