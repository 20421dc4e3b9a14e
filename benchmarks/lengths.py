"""How long must a run be to end below a rival's loss?

The step at which a long run passes a loss says too much: its rate has not come down by
then. Here every length is a run of its own, with the whole schedule.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import training
import tuning
from contestants import Contestant
from ledger import SEEDS, Ledger, key
from rivals import CONTRIB, CONTRIB_95, SPLIT
from store import UsageError
from tasks import CHUNK, Task
from verdicts import crossing, finals, runs

RIVALS = (SPLIT, CONTRIB, CONTRIB_95)
Lengths = dict[int, float]  # the final loss of runs of so many steps, of one seed


def measure(
    task: Task,
    entrants: Sequence[Contestant],
    rivals: Sequence[Contestant],
    ledger: Ledger,
    check: Callable[[], None],
) -> None:
    """Search each entrant's shortest run that ends below each rival's, seed by seed."""
    for one in entrants:
        for rival in rivals:
            found = targets(task, one, rival, ledger)
            for seed, target in zip(SEEDS, found, strict=False):
                search(task, one, seed, target, ledger, check)
        training.forget_programs()


def targets(
    task: Task, one: Contestant, rival: Contestant, ledger: Ledger
) -> list[float]:
    """Where the rival's full runs ended."""
    for name in (one.name, rival.name):
        if not runs(ledger.document, task.name, name):
            raise UsageError(
                "--part",
                "lengths",
                f"full runs of {name} on {task.name} are missing",
                f"Run --task {task.name} --part tune seeds first",
            )
    if one is rival:
        return []
    return finals(ledger.document, task.name, rival.name)


def search(
    task: Task,
    one: Contestant,
    seed: int,
    target: float,
    ledger: Ledger,
    check: Callable[[], None],
) -> None:
    """Halve what lies between a run too short and one that is long enough."""
    while True:
        known = losses(ledger.document, task.name, one.name, seed)
        short, enough = bracket(known, target)
        if enough is None or enough - short <= CHUNK:
            return
        steps = (short + enough) // 2 // CHUNK * CHUNK
        check()
        settings = tuning.tuned(task, one, ledger)
        row = training.measure(shortened(task, steps), one, settings, seed)
        ledger.put("lengths", key(task.name, one.name, seed, steps), row)
        tuning.say(f"{task.name} in {steps} steps, {one.name}, seed {seed}", row)


@functools.cache
def shortened(task: Task, steps: int) -> Task:
    return dataclasses.replace(task, steps=steps)


def losses(document: dict, task: str, name: str, seed: int) -> Lengths:
    """Of all lengths that ran with the settings of the full runs, and of those."""
    full = runs(document, task, name)
    if not full:
        return {}
    of_seed, prefix = full[SEEDS.index(seed)], key(task, name, seed, "")
    rows = document["results"].get("lengths", {})
    shorter = {
        int(case.removeprefix(prefix)): row["validation_loss"]
        for case, row in rows.items()
        if case.startswith(prefix) and row["settings"] == of_seed["settings"]
    }
    steps = document["results"]["tasks"][task]["steps"]
    found = shorter | {steps: of_seed["validation_loss"]}
    return {n: math.inf if loss is None else loss for n, loss in found.items()}


def bracket(known: Lengths, target: float) -> tuple[int, int | None]:
    """The longest run that was too short, and the shortest that was long enough.

    None where no run was long enough; 0 where none was too short.
    """
    enough = min((n for n, loss in known.items() if loss <= target), default=None)
    short = (n for n, loss in known.items() if loss > target)
    return max((n for n in short if enough is None or n < enough), default=0), enough


def shortest(document: dict, task: str, name: str, rival: str) -> list[float]:
    """Of each seed the length that suffices, linear between two runs.

    Infinite where the full run ends above the rival's; [] while the search is open.
    """
    found = []
    for seed, target in zip(SEEDS, finals(document, task, rival), strict=False):
        known = losses(document, task, name, seed)
        short, enough = bracket(known, target)
        if enough is None and known:
            found.append(math.inf)
        elif enough is None or enough - short > CHUNK:
            return []
        else:
            ends = [(n, known[n]) for n in (short, enough) if n]
            found.append(crossing(ends, target))
    return found
