"""Maps of coefficient tables: what becomes of each singular value."""

from typing import Any

import numpy as np

from optax_muon._coefficients import COEFFICIENTS
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._polynomials import evaluate
from optax_muon.plot._figure import Axes, Figure, figure_of, new_axes

# A chain oscillates ever faster towards 1, where each step folds its inputs once more.
_POINTS = 8001


def singular_values(
    *orthogonalizers: Any, smallest: float = 1e-4, axes: Axes | None = None
) -> Figure:
    """What Newton-Schulz makes of a singular value: p_T(... p_1(s)) over s.

    In float64, without the rounding of a real run; s is divided by the matrix's
    Frobenius norm already.

    Args:
      orthogonalizers: `NewtonSchulz(...)`, or its coefficients: names of
        `COEFFICIENTS`, or rows (a, b, c); a line for each. None at all is every table.
      smallest: where s begins, in (0, 1).
      axes: to draw into; None makes a figure.

    Raises:
      ValueError: unknown or unsafe coefficients; `smallest` out of range.
      TypeError: another orthogonalizer, which has no coefficients.

    >>> figure = singular_values("keller_jordan", NewtonSchulz("polar_express", 8))
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['keller_jordan, 5 steps', 'polar_express, 8 steps']
    """
    if not 0 < smallest < 1:
        raise ValueError(f"smallest={smallest!r} must be in (0, 1).")
    iterations = [_iteration(one) for one in orthogonalizers or COEFFICIENTS]
    axes = new_axes() if axes is None else axes
    s = np.geomspace(smallest, 1, _POINTS)
    for one in iterations:
        values = s
        for row in one.rows:
            values = evaluate(row, values)
        axes.plot(s, values, label=_label(one), linewidth=1)
    axes.set(xscale="log", xlabel="singular value before", ylabel="after")
    axes.legend()
    return figure_of(axes)


def _iteration(one: Any) -> NewtonSchulz:
    if isinstance(one, NewtonSchulz):
        return one
    if isinstance(one, Orthogonalizer):
        raise TypeError(
            f"{one!r} has no coefficients; pass NewtonSchulz(...), a name of "
            "COEFFICIENTS, or rows (a, b, c)."
        )
    return NewtonSchulz(one)


def _label(one: NewtonSchulz) -> str:
    name = one.coefficients if isinstance(one.coefficients, str) else "rows"
    return f"{name}, {len(one.rows)} step{'s' * (len(one.rows) > 1)}"
