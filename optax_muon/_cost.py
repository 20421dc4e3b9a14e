"""What an iteration costs in FLOPs.

Of a matrix n x m with n <= m, alpha = m / n. A cycle of t Gram steps makes one product
x x^T, 4 t - 3 symmetric products of n x n and one product q x; a direct step is a cycle
of its own but for the identity in its polynomial.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple


class Work(NamedTuple):
    """What a device does for one matrix that it has, or has some columns of.

    Attributes:
      flops: of products.
      reductions: how many n x n matrices are summed over the devices that share it.
      is_counted: whether `flops` are all of its products, not a guess.
    """

    flops: float
    reductions: int = 0
    is_counted: bool = True


def cycles(restarts: tuple[int, ...], steps: int) -> Iterator[tuple[int, int]]:
    """(first step, step after the last) of each cycle."""
    ends = (*(k + 1 for k in restarts), steps)
    return zip((0, *ends[:-1]), ends, strict=True)


def runs(restarts: tuple[int, ...], steps: int) -> Iterator[tuple[int, int, int]]:
    """(first step, how many cycles, steps in each) of cycles of one length in a row.

    >>> list(runs((1, 3), 5))
    [(0, 2, 2), (4, 1, 1)]
    """
    by_length = itertools.groupby(
        cycles(restarts, steps), lambda ends: ends[1] - ends[0]
    )
    for length, run in by_length:
        starts = [start for start, _ in run]
        yield starts[0], len(starts), length


def direct_flops(n: int, m: int, steps: int, half: float = 1.0) -> float:
    """FLOPs of `steps` direct steps on one matrix n x m, n <= m.

    Args:
      half: the share of a symmetric product that is computed: 1 for a plain product,
        3/4 for blocks of half the size, 1/2 at best.

    >>> direct_flops(10, 10, 5) / 10**3  # 2 T (2 alpha + 1)
    30.0
    """
    return 2 * steps * (half * (n * n * m + n**3) + n * n * m)


def gram_flops(n: int, m: float, steps: int, restarts: tuple[int, ...]) -> float:
    """FLOPs of `steps` Gram steps on one matrix n x m, n <= m.

    >>> gram_flops(10, 40, 5, (1,)) // 10**3  # 8 T - 6 + 4 alpha + r (4 alpha - 6)
    60
    """
    symmetric = sum(4 * (stop - start) - 3 for start, stop in cycles(restarts, steps))
    return 2 * (symmetric * n**3 + 2 * (len(restarts) + 1) * n * n * m)
