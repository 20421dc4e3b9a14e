"""Which momentum should `muon` have by default? On runs of several lengths.

The default is chosen by these, so they use tuning seeds: none that is reported. Of each
momentum the best of three rates counts.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable

import training
from contestants import RATES, START
from field import DEFAULT
from ledger import CONFIRMING_SEEDS, TUNING_SEED, Ledger, key
from tasks import Task
from tuning import say

LENGTHS = (150, 300, 600, 1200)  # steps, each with a schedule of its own
MOMENTA = (0.8, 0.85, 0.9, 0.95)
BEST = RATES.index(START["learning_rate"])
TRIED = RATES[BEST - 1 : BEST + 2]
MOMENTA_SEEDS = (TUNING_SEED, *CONFIRMING_SEEDS)[:2]


def measure(task: Task, ledger: Ledger, check: Callable[[], None]) -> None:
    """Run what is missing, seed by seed, short runs first."""
    for seed in MOMENTA_SEEDS:
        for steps in LENGTHS:
            for momentum in MOMENTA:
                for rate in TRIED:
                    case = key(task.name, steps, momentum, rate, seed)
                    settings = settings_of(momentum, rate)
                    stored = ledger.row("momenta", case)
                    if stored is not None and stored["settings"] == settings:
                        continue
                    check()
                    lasting = of_length(task, steps)
                    row = training.measure(lasting, DEFAULT, settings, seed)
                    ledger.put("momenta", case, row)
                    say(f"{task.name} in {steps} steps, seed {seed}", row)
        training.forget_programs()


def settings_of(momentum: float, rate: float) -> dict:
    """Today's: rows of others are measured anew, and until then in no table."""
    return START | {"momentum": momentum, "learning_rate": rate}


@functools.cache
def of_length(task: Task, steps: int) -> Task:
    return dataclasses.replace(task, steps=steps)


def best(document: dict, task: str, steps: int, momentum: float) -> float | None:
    """The mean loss of its best rate; None unless all of its runs are there."""
    rows, means = document["results"].get("momenta", {}), []
    for rate in TRIED:
        cases = [key(task, steps, momentum, rate, seed) for seed in MOMENTA_SEEDS]
        settings = settings_of(momentum, rate)
        found = [rows[case] for case in cases if case in rows]
        found = [row for row in found if row["settings"] == settings]
        if len(found) < len(cases):
            return None
        losses = [row["validation_loss"] for row in found]
        means.append(math.inf if None in losses else statistics.mean(losses))
    return min(means)
