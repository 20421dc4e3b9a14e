"""The search for each contestant's settings, and the runs that are reported.

Both go round by round over all contestants: whenever they are cut short, all have had
as many trials, or seeds, to within one.
"""

import sys
from collections.abc import Callable, Sequence

import conditions
import training
from contestants import Contestant
from gpt_example import climb
from ledger import CONFIRMING_SEEDS, SEEDS, TUNING_SEED, Ledger, key
from selection import confirming_case, finalists, winner
from store import UsageError
from tasks import CHUNK, Task

Check = Callable[[], None]


def tune(
    task: Task, entrants: Sequence[Contestant], ledger: Ledger, check: Check
) -> None:
    """Give each its trials; `check` is called before every run, and may end it all."""
    for budget in range(1, task.trials + 1):
        for one in entrants:
            tried = ledger.rows("tune", task.name, one.name)
            if len(tried) >= budget:
                continue
            settings = next_trial(task, one, tried, ledger)
            if settings is None:  # its ladders have no rung left
                continue
            check()
            row = training.measure(task, one, settings, TUNING_SEED)
            case = key(task.name, one.name, len(tried))
            ledger.put("tune", case, row)
            say(f"tune {task.name} {one.name}, trial {budget}", row)
    confirm(task, entrants, ledger, check)


def confirm(
    task: Task, entrants: Sequence[Contestant], ledger: Ledger, check: Check
) -> None:
    """Run the best trials of each on other tuning seeds as well."""
    for seed in CONFIRMING_SEEDS:
        for one in entrants:
            for number, row in finalists(ledger.document, task.name, one.name):
                case = confirming_case(task.name, one.name, number, seed)
                if ledger.row("confirm", case) is not None:
                    continue
                check()
                again = training.measure(task, one, row["settings"], seed)
                ledger.put("confirm", case, again)
                say(f"confirm {task.name} {one.name}, seed {seed}", again)


def next_trial(
    task: Task, one: Contestant, tried: list[dict], ledger: Ledger
) -> dict | None:
    """On the first task a search begins at `one.start`, elsewhere where that ended."""
    start = one.start
    if task.name != conditions.FIRST and not tried:
        start = best(conditions.FIRST, one, ledger)
    return climb.proposal(dict(start), one.ladders, climb.by_loss(tried))


def settled(one: Contestant, chosen: dict, tried: list[dict]) -> bool:
    """Whether every neighbour of the chosen settings was tried, each on its ladders."""
    known = [row["settings"] for row in tried]
    around = climb.neighbours(chosen, one.ladders)
    return all(settings in known for settings in around)


def best(task_name: str, one: Contestant, ledger: Ledger) -> dict:
    """The settings that won.

    Raises:
      UsageError: that is open.
    """
    found = winner(ledger.document, task_name, one.name)
    if found is None:
        raise UsageError(
            "--contestants",
            one.name,
            f"its search on {task_name} is not over",
            f"Run --task {task_name} --part tune first",
        )
    return found


def report(
    task: Task, entrants: Sequence[Contestant], ledger: Ledger, check: Check
) -> None:
    """Run each with its best settings on every reported seed."""
    settings = {one: tuned(task, one, ledger) for one in entrants}
    for seed in SEEDS:
        for one in entrants:
            case = key(task.name, one.name, seed)
            stored = ledger.row("seeds", case)
            # More trials may have found better settings since.
            if stored is not None and stored["settings"] == settings[one]:
                continue
            check()
            row = training.measure(task, one, settings[one], seed, CHUNK)
            ledger.put("seeds", case, row)
            say(f"seeds {task.name} {one.name}, seed {seed}", row)


def tuned(task: Task, one: Contestant, ledger: Ledger) -> dict:
    """The settings that won, of as many trials as all others have."""
    tried = ledger.rows("tune", task.name, one.name)
    if len(tried) < task.trials and next_trial(task, one, tried, ledger) is not None:
        raise UsageError(
            "--part",
            "seeds",
            f"{one.name} has had {len(tried)} of its {task.trials} trials on "
            f"{task.name}",
            f"Run --task {task.name} --part tune first",
        )
    return best(task.name, one, ledger)


def say(what: str, row: dict) -> None:
    """Progress, apart from the tables."""
    loss = row["validation_loss"]
    found = "diverged" if loss is None else f"{loss:.4f}"
    settings = ", ".join(f"{name} {value:g}" for name, value in row["settings"].items())
    print(
        f"{what}: {found} at {settings} ({row['seconds']:.0f} s)",
        file=sys.stderr,
        flush=True,
    )
