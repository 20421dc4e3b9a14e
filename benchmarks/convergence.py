"""Which optimizer learns most: recipes and variants of Muon, AdamW, and peers.

    python benchmarks/convergence.py

Each contestant is tuned alike on one seed, then runs on five others (`tuning`). Every
run is kept as it ends, and the next call goes on from there, so that the table can be
built in pieces: `--budget-minutes 9` stops in good order. Two processes may share the
work, each with `--contestants` and a processor of its own (`taskset -c 0`).

Afterwards `--table` prints the tables, and `--plot` draws how rates transfer to widths.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import conditions
import convergence_table
import field
import rivals
import steps
import training
import transfer
import tuning
from contestants import Contestant
from ledger import Ledger
from store import UsageError, load
from verdicts import finals

RESULTS = Path(__file__).parent / "results"
# The work of contestants one by one, and that which is of no use in pieces.
RUNS = ("tune", "seeds")
PARTS = (*RUNS, "times", "transfer")
BEST = 3  # how many go on to the other tasks, besides those that run everywhere


class BudgetSpentError(Exception):
    """No minutes are left for another run."""


def main(argv: list[str] | None = None) -> None:
    """Do what the command line asks, or say in one line why that cannot be done."""
    options = parse(argv)
    try:
        if options.table:
            print(convergence_table.markdown(load(options.out)))
        elif options.plot:
            transfer.draw(load(options.out), options.out.with_name("transfer.svg"))
        elif options.forget:
            print(f"dropped {Ledger(options.out).forget(options.forget)} rows")
        else:
            measure(options)
    except UsageError as error:
        sys.exit(f"error: {error}")
    except BudgetSpentError:
        print("The minutes are spent; the same call goes on from here", file=sys.stderr)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, tasks = parser.add_argument, list(conditions.MAKERS)
    add("--out", type=Path, default=RESULTS / "convergence.json", help="results file")
    add("--part", nargs="+", choices=PARTS, help="only these of the parts")
    add("--task", nargs="+", choices=tasks, help="only these tasks")
    add("--contestants", nargs="+", metavar="NAME", help="only these optimizers")
    add("--budget-minutes", type=float, default=math.inf, help="begin no run after")
    add("--forget", metavar="NAME", help="drop the rows of a contestant or a task")
    add("--table", action="store_true", help="print the tables of --out, run nothing")
    add("--plot", action="store_true", help="draw transfer.svg beside --out")
    options = parser.parse_args(argv)
    if options.part is None:  # a piece of the runs, or everything
        options.part = RUNS if options.contestants or options.task else PARTS
    options.task = options.task or tasks
    return options


def measure(options: argparse.Namespace) -> None:
    """Run what is missing of the parts asked for."""
    whole = [part for part in options.part if part not in RUNS]
    if options.contestants and whole:
        raise UsageError(
            "--contestants",
            " ".join(options.contestants),
            f"the part {whole[0]} is measured for all at once",
            f"Leave out --contestants, or --part {whole[0]}",
        )
    ledger, check = Ledger(options.out), deadline(options.budget_minutes)
    for name in options.task:
        compare(name, options, ledger, check)
    if "times" in options.part:
        first = conditions.task(conditions.FIRST)
        steps.time_steps(first, list(field.competitors().values()), ledger, check)
    if "transfer" in options.part:
        transfer.measure(ledger, check)


def compare(
    name: str, options: argparse.Namespace, ledger: Ledger, check: Callable[[], None]
) -> None:
    """Tuning and reported runs of one task."""
    if not set(RUNS) & set(options.part):
        return
    task = conditions.task(name)
    chosen = entrants(name, options.contestants, ledger)
    ledger.define("tasks", name, task.conditions())
    for one in chosen:
        ledger.define("contestants", one.name, one.definition())
    for peer, reason in rivals.absent().items():
        ledger.put("absent", peer, {"reason": reason})
    if "tune" in options.part:
        tuning.tune(task, chosen, ledger, check)
    if "seeds" in options.part:
        tuning.report(task, chosen, ledger, check)
    training.forget_programs()


def entrants(name: str, chosen: list[str] | None, ledger: Ledger) -> list[Contestant]:
    """Who runs on a task: those chosen, or all on the first, and the best on others."""
    known = field.competitors()
    unknown = [one for one in chosen or () if one not in known]
    if unknown:
        reasons = rivals.absent()
        raise UsageError(
            "--contestants",
            " ".join(unknown),
            reasons.get(unknown[0], "there is no such contestant"),
            f"Choose among {', '.join(known)}",
        )
    if chosen:
        return [known[one] for one in chosen]
    if name == conditions.FIRST:
        return list(known.values())
    among = best_on_the_first(known, ledger)
    return [one for one in known.values() if one.everywhere or one.name in among]


def best_on_the_first(known: dict[str, Contestant], ledger: Ledger) -> list[str]:
    """The names of the best of those that do not run everywhere anyway."""
    losses = {
        name: finals(ledger.document, conditions.FIRST, name)
        for name, one in known.items()
        if not one.everywhere
    }
    waiting = [name for name, found in losses.items() if not found]
    if waiting:
        raise UsageError(
            "--task",
            "those after the first",
            f"who is among the best is open while runs on {conditions.FIRST} are "
            f"missing, of {', '.join(waiting)}",
            f"Run --task {conditions.FIRST} first, or name --contestants",
        )
    return sorted(losses, key=lambda name: statistics.mean(losses[name]))[:BEST]


def deadline(minutes: float) -> Callable[[], None]:
    """A function that raises once so many minutes have passed."""
    end = time.monotonic() + 60 * minutes

    def check() -> None:
        if time.monotonic() >= end:
            raise BudgetSpentError

    return check


if __name__ == "__main__":
    main()
