"""Which optimizer learns most: recipes and variants of Muon, AdamW, and peers.

    python benchmarks/convergence.py

Each contestant is tuned alike on seeds of their own, then runs on five others
(`tuning`). Every run is kept as it ends, and the next call goes on from there, so that
the table can be built in pieces: `--budget-minutes 9` stops in good order. Two
processes may share the work, each with `--contestants` and a processor of its own
(`taskset -c 0`).

Afterwards `--report` writes the tables, and draws how rates transfer to widths.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import conditions
import convergence_table
import field
import lengths
import momenta
import rivals
import steps
import switching
import training
import transfer
import tuning
import verdicts
from contestants import Contestant
from ledger import Ledger
from store import UsageError, load

RESULTS = Path(__file__).parent / "results"
# The work of contestants one by one, and that which is of no use in pieces.
RUNS = ("tune", "seeds")
PARTS = (*RUNS, "lengths", "momenta", "switching", "times", "transfer")
BEST = 3  # how many go on to the other tasks, besides those that run everywhere


class BudgetSpentError(Exception):
    """No minutes are left for another run."""


def main(argv: list[str] | None = None) -> None:
    """Do what the command line asks, or say in one line why that cannot be done."""
    options = parse(argv)
    try:
        if options.report:
            report(options.out)
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
    add("--report", action="store_true", help="write tables and figure, run nothing")
    options = parser.parse_args(argv)
    if options.part is None:  # a piece of the runs, or everything
        options.part = RUNS if options.contestants or options.task else PARTS
    return options


def report(path: Path) -> None:
    """The tables beside the results as Markdown, and the figure of their transfer."""
    document, tables = load(path), path.with_suffix(".md")
    tables.write_text(convergence_table.markdown(document))
    print(f"wrote {tables.name}")
    if "transfer" in document["results"]:
        transfer.draw(document, path.with_name(transfer.FIGURE))
        print(f"wrote {transfer.FIGURE}")


def measure(options: argparse.Namespace) -> None:
    """Run what is missing of the parts asked for."""
    whole = [part for part in options.part if part not in RUNS]
    for flag in ("contestants", "task"):
        chosen = getattr(options, flag)
        if chosen and whole:
            raise UsageError(
                f"--{flag}",
                " ".join(chosen),
                f"the part {whole[0]} chooses for itself what it measures",
                f"Leave out --{flag}, or --part {whole[0]}",
            )
    ledger, check = Ledger(options.out), deadline(options.budget_minutes)
    for name in options.task or conditions.MAKERS:
        compare(name, options, ledger, check)
    first, known = conditions.task(conditions.FIRST), field.competitors()
    if "lengths" in options.part:
        chosen = [known[n] for n in (field.DEFAULT.name, *leaders(known, ledger))]
        chosen.append(rivals.CONTRIB)
        lengths.measure(first, chosen, lengths.RIVALS, ledger, check)
    if "momenta" in options.part:
        momenta.measure(first, ledger, check)
    if "switching" in options.part:
        switching.measure(first, ledger, check)
    if "times" in options.part:
        steps.time_steps(first, list(known.values()), ledger, check)
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
    among = leaders(known, ledger)
    return [one for one in known.values() if one.everywhere or one.name in among]


def leaders(known: dict[str, Contestant], ledger: Ledger) -> list[str]:
    """The best on the first task, of those that do not run everywhere anyway.

    Rivals are not among them: one that does not run everywhere is to be beaten there.
    """
    among = [
        name
        for name, one in known.items()
        if not one.everywhere and one not in field.RIVALS
    ]
    first, document = conditions.FIRST, ledger.document
    waiting = [name for name in among if not verdicts.finals(document, first, name)]
    if waiting:
        raise UsageError(
            "--task",
            "those after the first",
            f"who is among the best is open while runs on {first} are missing, of "
            f"{', '.join(waiting)}",
            f"Run --task {first} first, or name --contestants",
        )
    return verdicts.leaders(document, first, among, BEST)


def deadline(minutes: float) -> Callable[[], None]:
    """A function that raises once so many minutes have passed."""
    end = time.monotonic() + 60 * minutes

    def check() -> None:
        if time.monotonic() >= end:
            raise BudgetSpentError

    return check


if __name__ == "__main__":
    main()
