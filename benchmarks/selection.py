"""Which settings of a contestant won, from the rows of its trials alone."""

import math
import statistics

from gpt_example import climb
from ledger import CONFIRMING_SEEDS, key

FINALISTS = 2  # trials of each that run on the other tuning seeds as well


def trials(document: dict, task: str, name: str) -> list[dict]:
    """All on the tuning seed, in the order in which they ran."""
    prefix, rows = key(task, name, ""), document["results"].get("tune", {})
    return [row for case, row in rows.items() if case.startswith(prefix)]


def finalists(document: dict, task: str, name: str) -> list[tuple[int, dict]]:
    """The best trials, each with its number."""
    tried = trials(document, task, name)
    return [(tried.index(row), row) for row in climb.by_loss(tried)[:FINALISTS]]


def confirming_case(task: str, name: str, number: int, seed: int) -> str:
    """Where the row of a trial on another tuning seed stands."""
    return key(task, name, number, seed)


def winner(document: dict, task: str, name: str) -> dict | None:
    """The settings whose mean loss over all tuning seeds is least.

    None unless all finalists have run on all of these.
    """
    rows, losses = document["results"].get("confirm", {}), {}
    for number, row in finalists(document, task, name):
        cases = [confirming_case(task, name, number, s) for s in CONFIRMING_SEEDS]
        if not all(case in rows for case in cases):
            return None
        found = [r["validation_loss"] for r in (row, *(rows[case] for case in cases))]
        losses[number] = math.inf if None in found else statistics.mean(found)
    if not losses:
        return None
    return trials(document, task, name)[min(losses, key=losses.__getitem__)]["settings"]
