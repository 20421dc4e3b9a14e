"""Odd quintics in a chain: rows of coefficients, and how large an input they bear.

One row (a, b, c) is one step p(s) = a s + b s^3 + c s^5 acting on the singular values.
Every such p maps (0, d] to an interval that begins at 0. So a chain of them is safe on
(0, d] when the largest value of each step is within what the rest of the chain bears,
and two short recursions over critical points settle exactly what a grid only samples.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

Row = tuple[float, float, float]
S = TypeVar("S", float, np.ndarray)

# Rounding the singular value 1 to bfloat16 (8 bits) errs by at most 2^-8 of it; the
# error of the norm that was divided by is of float32's size, and far below.
LARGEST_INPUT = 1 + 2.0**-8

# A Polar Express chain that is cut short reaches 2 - l by design (l as small as it
# likes, hence room for float64's rounding). Beyond 2 nothing good is left.
_LARGEST_OUTPUT = 2 * (1 + 2.0**-40)


@dataclasses.dataclass(frozen=True)
class CoefficientTable:
    """Rows (a, b, c) of quintic polynomials, and how many steps to take by default.

    Attributes:
      rows: one (a, b, c) for each step; the last one repeats.
      steps: the number of steps when the user names none.
      source: where the numbers come from.
    """

    rows: tuple[Row, ...]
    steps: int
    source: str = dataclasses.field(default="given by the user", compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def schedule(self, steps: int | None = None) -> tuple[Row, ...]:
        """The (a, b, c) of each of `steps` steps (default: the table's own number).

        >>> CoefficientTable(((1.5, -0.5, 0.0),), steps=5).schedule(2)
        ((1.5, -0.5, 0.0), (1.5, -0.5, 0.0))
        """
        count = self.steps if steps is None else steps
        last = len(self.rows) - 1
        return tuple(self.rows[min(k, last)] for k in range(count))


def evaluate(row: Row, s: S) -> S:
    """a s + b s^3 + c s^5; infinite or NaN, and no exception, when s is huge."""
    a, b, c = row
    t = s * s
    return s * (a + t * (b + t * c))


def deflate(row: Row, safety: float) -> Row:
    """The row of p(s / safety)."""
    a, b, c = row
    return a / safety, b / safety**3, c / safety**5


def bounds(rows: tuple[Row, ...], largest: float = 1.0) -> list[float]:
    """The largest singular value before each step and after all, from (0, largest]."""
    steps = itertools.accumulate(rows, lambda m, row: _peak(row, m), initial=largest)
    return list(steps)


def image(rows: tuple[Row, ...], low: float, high: float = 1.0) -> tuple[float, float]:
    """The smallest and the largest result of singular values in [low, high].

    Step by step over end points and turning points: a continuous step takes an interval
    to an interval, so nothing is sampled.

    >>> jordan = ((3.4445, -4.7750, 2.0315),) * 5
    >>> [round(end, 3) for end in image(jordan, 1e-3)]
    [0.471, 1.202]
    """
    for row in rows:
        inside = [s for s in _turning_points(row) if low < s < high]
        values = [evaluate(row, s) for s in (low, *inside, high)]
        low, high = min(values), max(values)
    return low, high


@functools.lru_cache(maxsize=256)  # configurations are built often, from few tables
def margin(rows: tuple[Row, ...]) -> float:
    """By what factor a singular value may grow, before any one step, and be safe.

    min over k of D_k / M_k: the divergence threshold D_k of the steps from k on, over
    the largest singular value M_k that the k steps before them make of (0, 1].

    >>> round(margin(((3.4445, -4.7750, 2.0315),) * 5), 3)
    1.051
    """
    safe = thresholds(rows)
    if safe[0] < 1:
        return safe[0]
    return min(d / m for d, m in zip(safe, bounds(rows), strict=False))


def check_rows(rows: tuple[Row, ...], coefficients: object = None) -> None:
    """Raise unless every singular value in (0, 1 + 2^-8] stays positive and ends <= 2.

    Args:
      rows: the steps that will run, as `CoefficientTable.schedule` gives them.
      coefficients: what the user passed, for the message.

    Raises:
      ValueError: a step turns a sign, or the chain explodes.
    """
    safe = thresholds(rows)[0]
    if safe >= LARGEST_INPUT:
        return
    name = f"{coefficients!r}: " if isinstance(coefficients, str) else ""
    raise ValueError(
        f"coefficients={name}[{_shown(rows)}] cannot be iterated: "
        f"{_failure_beyond(safe, rows)}. Only singular values up to {safe:.7g} are "
        f"safe, but rounding and the norm's own error let them reach 1 + 2^-8 = "
        f"{LARGEST_INPUT:.7g}. Deflate every step by a safety factor s, that is "
        "(a/s, b/s^3, c/s^5), or take rows of polar_express_coefficients(steps, "
        "safety=1.01), or another table of COEFFICIENTS."
    )


@functools.lru_cache(maxsize=256)
def thresholds(rows: tuple[Row, ...]) -> tuple[float, ...]:
    """D_k for each k: steps k, k + 1, ... are safe on (0, D_k], and no further.

    (0, d] is safe for them if p_k is positive on it and at most D_{k+1}.
    """
    bounds = [_LARGEST_OUTPUT]
    for row in reversed(rows):
        bounds.append(_reach(row, bounds[-1]))
    return tuple(bounds[:0:-1])


def _reach(row: Row, bound: float) -> float:
    """The largest d with 0 < p <= bound on (0, d]."""

    def inside(s: float) -> bool:
        return 0 < evaluate(row, s) <= bound

    low = 0.0
    for high in _turning_points(row):
        if not inside(high):
            return _last_inside(inside, low, high)
        low = high
    high = max(1.0, 2 * low)
    while inside(high):  # past its turning points p tends to an infinity
        low, high = high, 2 * high
    return _last_inside(inside, low, high)


def _last_inside(inside: Callable[[float], bool], low: float, high: float) -> float:
    """Bisection where p is monotone, so that it leaves the bounds once."""
    for _ in range(60):  # the gap shrinks by 2^60, past float64's 53 bits
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low


def _peak(row: Row, high: float) -> float:
    """The largest value of p on (0, high]."""
    points = (s for s in _turning_points(row) if s < high)
    return max(evaluate(row, s) for s in (*points, high))


def _turning_points(row: Row) -> list[float]:
    """Where p'(s) = a + 3 b t + 5 c t^2 is zero, t = s^2, ascending."""
    a, b, c = row[0], 3 * row[1], 5 * row[2]
    discriminant = b * b - 4 * a * c
    if not discriminant >= 0:
        return []
    # No difference of like numbers: one root is w / c, and their product is a / c.
    w = -(b + math.copysign(math.sqrt(discriminant), b)) / 2
    ratios = [(w, c), (a, w)]
    return sorted(math.sqrt(p / q) for p, q in ratios if q != 0 and p / q > 0)


def _failure_beyond(safe: float, rows: tuple[Row, ...]) -> str:
    """What becomes of one singular value in [safe, 1 + 2^-8], in words.

    The largest one may get through where smaller ones do not; they are searched
    ever closer to `safe`, above which failure begins.
    """
    span = LARGEST_INPUT - safe
    values = (safe + span * 2.0**-j for j in range(60))
    found = filter(None, (_failure(s, rows) for s in values))
    return next(found, f"singular values just above {safe:.7g} fail")


def _failure(s: float, rows: tuple[Row, ...]) -> str | None:
    value = s
    for k, row in enumerate(rows, 1):
        value = evaluate(row, value)
        if value <= 0:
            return (
                f"the singular value {s:.7g} is mapped to {value:.4g} after step {k}, "
                "which is not positive: its direction turns round or is lost"
            )
        if math.isinf(value):
            break
    if value <= _LARGEST_OUTPUT:
        return None
    return f"the singular value {s:.7g} is mapped to {value:.4g}, beyond 2: it explodes"


def _shown(rows: tuple[Row, ...]) -> str:
    """`(a, b, c), 4 x (a, b, c), ...`: long chains repeat their rows."""
    runs = [(len(list(same)), row) for row, same in itertools.groupby(rows)]
    return ", ".join(
        f"{count} x " * (count > 1) + f"({a:.6g}, {b:.6g}, {c:.6g})"
        for count, (a, b, c) in runs
    )
