"""Which momentum should `muon` have, and which rate, in runs of several lengths?

The default is chosen by these, so they use tuning seeds: none that is reported. Each
momentum, and AdamW with split rates beside them, counts with its best rate.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import training
from contestants import RATES, START, Contestant
from field import DEFAULT
from ledger import CONFIRMING_SEEDS, TUNING_SEED, Ledger, key
from rivals import SPLIT
from selection import winner
from tasks import Task
from tuning import say

LENGTHS = (150, 300, 600, 1200)  # steps, each with a schedule of its own
MOMENTA = (0.8, 0.85, 0.9, 0.95)
MOMENTA_SEEDS = (TUNING_SEED, *CONFIRMING_SEEDS)[:2]


@dataclasses.dataclass(frozen=True)
class Line:
    """What is compared, at its best rate.

    Attributes:
      name: its part of the key of a case.
      contestant: whose optimizer it is.
      settings: its own, and the rate of the matrices where the search begins.
    """

    name: str
    contestant: Contestant
    settings: dict[str, Any]

    def at(self, rate: float) -> dict[str, Any]:
        """Today's settings: rows of others are measured anew, and till then unseen."""
        return self.settings | {"learning_rate": rate}


def lines(document: dict, task: str) -> list[Line]:
    """`muon` by its momenta, and AdamW once its search on the task is over."""
    found = [Line(f"{m:g}", DEFAULT, START | {"momentum": m}) for m in MOMENTA]
    adamw = winner(document, task, SPLIT.name)
    return found if adamw is None else [*found, Line(SPLIT.name, SPLIT, adamw)]


def measure(task: Task, ledger: Ledger, check: Callable[[], None]) -> None:
    """Run what is missing, short runs first."""
    for steps in LENGTHS:
        for line in lines(ledger.document, task.name):
            while lacking := missing(ledger.document, task.name, steps, line):
                rate, seed = lacking
                check()
                lasting = of_length(task, steps)
                row = training.measure(lasting, line.contestant, line.at(rate), seed)
                case = key(task.name, steps, line.name, rate, seed)
                ledger.put("momenta", case, row)
                say(f"{task.name} in {steps} steps, {line.name}, seed {seed}", row)
            training.forget_programs()


@functools.cache
def of_length(task: Task, steps: int) -> Task:
    return dataclasses.replace(task, steps=steps)


def best(
    document: dict, task: str, steps: int, line: Line
) -> tuple[float, float] | None:
    """The least mean loss and its rate; None while the search is open."""
    if missing(document, task, steps, line):
        return None
    return min(means(search(document, task, steps, line)))


def missing(
    document: dict, task: str, steps: int, line: Line
) -> tuple[float, int] | None:
    """A rate and a seed that the search comes to next; None when it is over."""
    found = search(document, task, steps, line)
    return next(
        (
            (rate, seed)
            for seed in MOMENTA_SEEDS
            for rate, losses in found.items()
            if seed not in losses
        ),
        None,
    )


def search(
    document: dict, task: str, steps: int, line: Line
) -> dict[float, dict[int, float]]:
    """By rate and seed the losses found, of the rates that the search has come to.

    Three of them, and on from there while the best one is the lowest or highest.
    """
    start = RATES.index(line.settings["learning_rate"])
    low, high = start - 1, start + 1
    while True:
        tried = RATES[low : high + 1]
        found = {rate: losses(document, task, steps, line, rate) for rate in tried}
        if any(len(of_rate) < len(MOMENTA_SEEDS) for of_rate in found.values()):
            return found
        _, rate = min(means(found))
        if rate == tried[0] and low > 0:
            low -= 1
        elif rate == tried[-1] and high + 1 < len(RATES):
            high += 1
        else:
            return found


def means(found: dict[float, dict[int, float]]) -> list[tuple[float, float]]:
    """The mean loss of each rate, and the rate."""
    return [(statistics.mean(each.values()), rate) for rate, each in found.items()]


def losses(
    document: dict, task: str, steps: int, line: Line, rate: float
) -> dict[int, float]:
    """Of the seeds that have run."""
    rows = document["results"].get("momenta", {})
    found = {
        seed: rows.get(key(task, steps, line.name, rate, seed))
        for seed in MOMENTA_SEEDS
    }
    return {
        seed: math.inf if row["validation_loss"] is None else row["validation_loss"]
        for seed, row in found.items()
        if row is not None and row["settings"] == line.at(rate)
    }
