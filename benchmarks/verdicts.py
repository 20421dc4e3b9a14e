"""What the runs of one task say: losses, paired differences, verdicts, and steps.

Runs of one seed begin alike and see the same batches, so contestants are compared seed
by seed, and what a seed does to all of them cancels.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable

from ledger import SEEDS, key
from selection import winner

# Student's t with 4 degrees of freedom, two-sided 95 %: for the mean of 5 differences.
T95 = {5: 2.776}


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean over seeds of one contestant's final loss less another's.

    Attributes:
      mean: negative where the first is better.
      margin: half the 95 % interval of the mean.
    """

    mean: float
    margin: float

    @property
    def verdict(self) -> str:
        if abs(self.mean) <= self.margin:
            return "no difference"
        return "helps" if self.mean < 0 else "worse"


def names(document: dict) -> list[str]:
    """All contestants of the file."""
    return list(document["results"].get("contestants", {}))


def runs(document: dict, task: str, name: str) -> list[dict]:
    """The rows of all reported seeds, in order; none unless all are there.

    Nor where some are of other settings than won: better ones were found since, and
    not all runs repeated yet.
    """
    rows = document["results"].get("seeds", {})
    found = [rows.get(key(task, name, seed)) for seed in SEEDS]
    settings = winner(document, task, name)
    if None in (*found, settings) or any(row["settings"] != settings for row in found):
        return []
    return found


def finals(document: dict, task: str, name: str) -> list[float]:
    """The final loss of each seed, infinite where it diverged."""
    return [final(row) for row in runs(document, task, name)]


def final(row: dict) -> float:
    """A run's last loss, infinite where it diverged."""
    loss = row["validation_loss"]
    return math.inf if loss is None else loss


def ranking(document: dict, task: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that have run, best first."""
    losses = {name: finals(document, task, name) for name in names}
    ran = (name for name in losses if losses[name])
    return sorted(ran, key=lambda name: statistics.mean(losses[name]))


def leaders(document: dict, task: str, names: Iterable[str], count: int) -> list[str]:
    """The best `count`; of those whose runs are equal bit by bit only the first.

    MuonClip is Moonlight while it clips nothing.
    """
    found: dict[tuple[float, ...], str] = {}
    for name in ranking(document, task, names):
        found.setdefault(tuple(finals(document, task, name)), name)
    return list(found.values())[:count]


def difference(document: dict, task: str, name: str, other: str) -> Difference | None:
    """Of a contestant from another; None without finite losses of both."""
    if name == other:
        return None
    return paired(finals(document, task, name), finals(document, task, other))


def paired(mine: list[float], theirs: list[float]) -> Difference | None:
    """Of losses from others, seed by seed; None without finite ones of both."""
    if not mine or not theirs or math.inf in (*mine, *theirs):
        return None
    pairs = [a - b for a, b in zip(mine, theirs, strict=True)]
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(statistics.mean(pairs), T95[len(pairs)] * error)


def steps_to_final(document: dict, task: str, name: str, rival: str) -> float | None:
    """The median over seeds of the step where a run passes where its rival's ended.

    Infinite where most runs never do; None without the runs of both.
    """
    mine, targets = runs(document, task, name), finals(document, task, rival)
    return median_crossing(mine, targets) if mine and targets else None


def median_crossing(rows: list[dict], targets: list[float]) -> float:
    """Of runs and their targets, seed by seed."""
    return statistics.median(
        crossing(row["validation"], target)
        for row, target in zip(rows, targets, strict=True)
    )


def crossing(validation: list[tuple[int, float]], target: float) -> float:
    """The step at which the loss comes to the target, linear between evaluations."""
    before = None
    for step, loss in validation:
        if loss <= target:
            if before is None or before[1] <= loss:
                return step
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (step - before[0])
        before = step, loss
    return math.inf
