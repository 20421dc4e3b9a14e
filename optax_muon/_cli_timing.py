"""Timing by turns: a machine's speed drifts, and what runs in one round shares that."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

WARM_UPS = 2  # the first call compiles, the second tells how often to repeat


class Summary(NamedTuple):
    """The median of samples, and their quartiles."""

    median: float
    low: float
    high: float


def by_turns(
    runs: dict[str, Callable[[], None]],
    rounds: int,
    on_sample: Callable[[], None],
    sample_seconds: float,
) -> dict[str, list[float]]:
    """Seconds of one run, of each in every round; every other round goes backwards.

    Args:
      runs: each returns when its work is done.
      rounds: how often each is measured.
      on_sample: called after each of WARM_UPS calls and each sample, of every run.
      sample_seconds: shorter work is repeated until a sample takes about so long.
    """
    repeats = {}
    for name, run in runs.items():
        for _ in range(WARM_UPS):
            once = _seconds(run, 1)
            on_sample()
        repeats[name] = max(1, math.ceil(sample_seconds / once))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs)[:: -1 if index % 2 else 1]:
            samples[name].append(_seconds(runs[name], repeats[name]) / repeats[name])
            on_sample()
    return samples


def summary(values: Sequence[float]) -> Summary:
    """
    >>> summary([3.0, 1.0, 2.0])
    Summary(median=2.0, low=1.5, high=2.5)
    """
    low, median, high = np.percentile(values, (25, 50, 75))
    return Summary(float(median), float(low), float(high))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, which no drift from round to round moves."""
    return [a / b for a, b in zip(above, below, strict=True)]


def _seconds(run: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - start
