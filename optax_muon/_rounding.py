"""How far rounding grows in the Gram form, and the restarts that keep it small."""

import functools
import math

import jax.numpy as jnp
import numpy as np

from optax_muon._polynomials import Row, bounds, evaluate, margin, thresholds

# Beyond this index of `overshoot`, rounding showed on hard spectra.
OVERSHOOT_LIMIT = 1.15


def noise_growth(cycle: tuple[Row, ...]) -> float:
    """How much the rounding of R has grown when a cycle last uses R, at worst.

    A step multiplies R's eigenvalues near zero, be they noise, by a^2.
    """
    return math.prod(max(a * a, 1.0) for a, _, _ in cycle[:-1])


def noise_limit(dtype: np.dtype) -> float:
    """The growth that `dtype` bears.

    In 16 bits it admits cycles of two steps, for coefficients that start with a = 3 to
    8; a third brought Keller Jordan's error from 0.05 to 0.4 in bfloat16. In float32 it
    admits his five, which grow 2e4 times: errors up to 1e-3 where one restart gives
    2e-4; You Jiacheng's, 3e4, gave 1.7e-3. (Relative errors on matrices of rank one and
    other hard spectra, 32 x 128 to 768 x 3072; tests/test_numerics.py asserts those of
    the safe restarts.)
    """
    return {2: 64.0, 4: 2.5e4, 8: 1e8}[dtype.itemsize]


def overshoot(rows: tuple[Row, ...], start: int, stop: int, dtype: np.dtype) -> float:
    """An index of how far rounding in one cycle can carry a singular value astray.

    A cycle maps s to (q + Q) s, where Q cancels most of q if s is large. Rounding Q and
    X to `dtype` leaves an error of some q s eps / 2: rows average it out, unless few of
    them matter. Later steps may pull s back or, past where the polynomials are bounded,
    let it turn negative or diverge.

    Measured in bfloat16, on 32 000 matrices with few rows (`few_rows` in
    tests/spectra.py) and 8 208 hard spectra: a first cycle whose index is infinite made
    ten of the former diverge (Polar Express), and one of the latter come to 1.57 (You
    Jiacheng's rows); cycles at 1.2 (Polar Express) and 1.18 (modula) diverged nowhere,
    but came to 1.18 and 1.54.

    Returns:
      The bound on singular values with such an error by that without; infinite if one
      may change its sign, or leave where the steps from `stop` on are safe.
    """
    exact = bounds(rows)
    s = after = np.linspace(0, exact[start], 4001)[1:]
    for row in rows[start:stop]:
        after = evaluate(row, after)
    error = float(jnp.finfo(dtype).eps) / 2 * slope_at_zero(rows[start:stop]) * s
    largest = float((after + error).max())
    safe = (*thresholds(rows), math.inf)[stop]
    if not (largest <= safe and (after > error).all()):
        return math.inf
    return bounds(rows[stop:], largest)[-1] / exact[-1]


@functools.cache
def safe_restarts(rows: tuple[Row, ...], dtype: np.dtype) -> tuple[int, ...]:
    """The fewest restarts that `dtype` bears; of those, the least noise growth.

    Of those, the latest: cycles of one length then come in a row, and compile once. No
    cycle's growth or overshoot may exceed its limit; a cycle of one step, in which
    nothing grows, always counts as safe here. No restart comes after the very first
    step if two can be a cycle: it costs accuracy, for Polar Express in bfloat16 0.14 in
    place of 0.10.

    >>> safe_restarts(((3.4445, -4.775, 2.0315),) * 6, np.dtype("float32"))
    (2,)
    >>> safe_restarts(((3.4445, -4.775, 2.0315),) * 5, np.dtype(jnp.bfloat16))
    (1, 3)
    """

    def safe(start: int, stop: int) -> bool:
        return stop - start == 1 or unsafe_cycle(rows, start, stop, dtype) is None

    apart = {1} if len(rows) > 1 and safe(0, 2) else set()
    # best[k]: (cycles, growth, restarts) of the first k steps, the smallest first.
    best: list[tuple[int, float, tuple[int, ...]]] = [(0, 1.0, ())]
    for stop in range(1, len(rows) + 1):
        options = []
        for start in sorted(set(range(stop)) - apart):
            count, worst, before = best[start]
            if safe(start, stop):
                restarts = (*before, start - 1) if start else ()
                growth = max(worst, noise_growth(rows[start:stop]))
                options.append((count + 1, growth, restarts))
        best.append(min(options, key=lambda o: (o[0], o[1], [-k for k in o[2]])))
    return best[-1][2]


def unsafe_cycle(
    rows: tuple[Row, ...], start: int, stop: int, dtype: np.dtype
) -> str | None:
    """Why `dtype` does not bear a cycle; None if it does."""
    growth, limit = noise_growth(rows[start:stop]), noise_limit(dtype)
    if growth > limit:
        return (
            f"rounding noise in X X^T grows {growth:.3g} times within a cycle, {dtype} "
            f"bears {limit:.3g}"
        )
    if (found := overshoot(rows, start, stop, dtype)) > OVERSHOOT_LIMIT:
        what = "diverge or change sign"
        if found < math.inf:
            what = f"{found:.3g} times as large as they should be"
        return (
            f"rounding to {dtype} in a cycle of steps {start} to {stop - 1} can make "
            f"singular values {what}; these coefficients leave a margin of "
            f"{margin(rows):.4g} before a step"
        )
    return None


def slope_at_zero(rows: tuple[Row, ...]) -> float:
    """What the chain multiplies the smallest singular values by."""
    return math.prod(a for a, _, _ in rows)


def slope_limit(dtype: np.dtype) -> float:
    """The slope at zero up to which the Gram form may be used in `dtype`.

    Rounding noise in directions where X has nothing grows with it. Measured: error 0.12
    in bfloat16 at slope 5000, 0.5 at 17000, 0.9 at 79000, where the direct form keeps
    0.04; in float16 0.05 at 69000.
    """
    return 64 / float(jnp.finfo(dtype).eps)
