"""What an iteration costs in FLOPs, and how far rounding grows in it.

Of a matrix n x m with n <= m, alpha = m / n. A cycle of t Gram steps makes one product
x x^T, 4 t - 3 symmetric products of n x n and one product q x; a direct step is a cycle
of its own but for the identity in its polynomial.
"""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from optax_muon._polynomials import Row


def cycles(restarts: tuple[int, ...], steps: int) -> Iterator[tuple[int, int]]:
    """(first step, step after the last) of each cycle."""
    ends = (*(k + 1 for k in restarts), steps)
    return zip((0, *ends[:-1]), ends, strict=True)


def direct_flops(n: int, m: int, steps: int, half: float = 1.0) -> float:
    """FLOPs of `steps` direct steps on one matrix n x m, n <= m.

    Args:
      half: the share of a symmetric product that is computed: 1 for a plain product,
        3/4 for blocks of half the size, 1/2 at best.

    >>> direct_flops(10, 10, 5) / 10**3  # 2 T (2 alpha + 1)
    30.0
    """
    return 2 * steps * (half * (n * n * m + n**3) + n * n * m)


def gram_flops(
    n: int, m: int, steps: int, restarts: tuple[int, ...], half: float = 1.0
) -> float:
    """FLOPs of `steps` Gram steps on one matrix n x m, n <= m.

    >>> gram_flops(10, 40, 5, (1,)) / 10**3  # 8 T - 6 + 4 alpha + r (4 alpha - 6)
    60.0
    """
    symmetric = sum(4 * (stop - start) - 3 for start, stop in cycles(restarts, steps))
    long = (len(restarts) + 1) * n * n * m
    return 2 * (half * (long + symmetric * n**3) + long)


def noise_growth(rows: tuple[Row, ...], restarts: tuple[int, ...] = ()) -> float:
    """How much the rounding of R in a cycle has grown when R is last used, at worst.

    A step multiplies R's eigenvalues near zero, be they noise, by a^2.
    """
    return max(_growth(rows[i:j]) for i, j in cycles(restarts, len(rows)))


def noise_limit(dtype: np.dtype) -> float:
    """The growth that `dtype` bears.

    In 16 bits it admits cycles of two steps, for coefficients that start with a = 3 to
    8; a third brought Keller Jordan's error from 0.05 to 0.4 in bfloat16. In float32 it
    admits three or four; his five in one cycle, which grow 2e4 times, gave 2.7e-3 where
    one restart gives 6e-4. (Relative errors on matrices of rank one and other hard
    spectra, 384 x 1536; tests/test_numerics.py asserts those of the safe restarts.)
    """
    return {2: 64.0, 4: 4e3, 8: 1e8}[dtype.itemsize]


def safe_restarts(rows: tuple[Row, ...], dtype: np.dtype) -> tuple[int, ...]:
    """The fewest restarts whose noise growth `dtype` bears; of those, the least growth.

    A cycle of one step is a direct step in which nothing grows, so some always exist.
    None comes after the very first step if two can be a cycle: measured, it doubles the
    error of Polar Express in bfloat16 (0.23 for 0.10 on a matrix of rank one).

    >>> safe_restarts(((3.4445, -4.775, 2.0315),) * 5, np.dtype("float32"))
    (1,)
    """
    limit = noise_limit(dtype)
    apart = {1} if len(rows) > 1 and _growth(rows[:2]) <= limit else set()
    # best[k]: (cycles, growth, restarts) of the first k steps, the smallest first.
    best: list[tuple[int, float, tuple[int, ...]]] = [(0, 1.0, ())]
    for stop in range(1, len(rows) + 1):
        options = []
        for start in sorted(set(range(stop)) - apart):
            count, worst, before = best[start]
            growth = _growth(rows[start:stop])
            if growth <= limit:
                restarts = (*before, start - 1) if start else ()
                options.append((count + 1, max(worst, growth), restarts))
        best.append(min(options))
    return best[-1][2]


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


def _growth(rows: tuple[Row, ...]) -> float:
    return math.prod(max(a * a, 1.0) for a, _, _ in rows[:-1])
