"""Interleaved timing: what is compared runs in the same rounds, and shares their noise.

A machine's speed drifts by more than many a difference worth knowing. A ratio taken
within a round sees little of that, and the median over rounds less.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# OpenMP's threads spin a while after their work, on the processors of whoever is next.
PAUSE = 0.02


def interleave(
    runs: dict[str, Callable[[int], None]], rounds: int, sample_seconds: float
) -> dict[str, list[float]]:
    """Seconds a repetition, of every contestant in every round.

    Args:
      runs: each does its work so many times and returns when it is done.
      rounds: each contestant runs once a round; who begins rotates, and every other
        round goes backwards, so that none always follows the same one.
      sample_seconds: short work is repeated until a sample takes about so long.
    """
    repeats = {name: warm_up(run, sample_seconds) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in rotated(list(runs), index):
            time.sleep(PAUSE)
            taken = seconds(runs[name], repeats[name])
            samples[name].append(taken / repeats[name])
    return samples


def warm_up(run: Callable[[int], None], sample_seconds: float) -> int:
    """Run twice, since the first time compiles; how often makes a sample."""
    run(1)
    once = seconds(run, 1)
    return max(1, math.ceil(sample_seconds / once))


def seconds(run: Callable[[int], None], repeats: int) -> float:
    start = time.perf_counter()
    run(repeats)
    return time.perf_counter() - start


def rotated(names: Sequence[T], by: int) -> list[T]:
    """The names in order, from another one on; backwards when `by` is odd."""
    start = by % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if by % 2 else order


def summary(values: Sequence[float]) -> dict:
    """Median, quartiles and count, to five digits."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {
        "median": digits(median),
        "quartiles": [digits(low), digits(high)],
        "count": len(values),
    }


def ratios(above: Sequence[float], below: Sequence[float]) -> dict:
    """The summary of the ratios round by round: not the ratio of medians."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def digits(value: float) -> float:
    """Five significant digits: more than any clock here can vouch for."""
    return float(f"{value:.5g}")
