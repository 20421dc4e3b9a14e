"""What does a user of AdamW get who changes the optimizer and nothing else?

`muon()` runs with the rates and the decay that AdamW with split rates won with, and
with its own momentum; then with the matrices' rate multiplied.
"""

import inspect
from collections.abc import Callable

import optax_muon
import training
import tuning
from field import DEFAULT
from ledger import SEEDS, Ledger, key
from rivals import SPLIT
from selection import winner
from tasks import CHUNK, Task

FACTORS = (1, 2, 4, 8, 16)
MOMENTUM = inspect.signature(optax_muon.muon).parameters["momentum"].default


def measure(task: Task, ledger: Ledger, check: Callable[[], None]) -> None:
    """Run what is missing, factor by factor."""
    adamw = tuning.best(task.name, SPLIT, ledger)
    for factor in FACTORS:
        settings = switched(adamw, factor)
        for seed in SEEDS:
            case = key(task.name, factor, seed)
            stored = ledger.row("switching", case)
            if stored is not None and stored["settings"] == settings:
                continue
            check()
            row = training.measure(task, DEFAULT, settings, seed, CHUNK)
            ledger.put("switching", case, row)
            tuning.say(f"{task.name}, AdamW's rate times {factor}, seed {seed}", row)


def switched(adamw: dict, factor: int) -> dict:
    """AdamW's settings as those of `muon`."""
    return adamw | {
        "learning_rate": factor * adamw["learning_rate"],
        "momentum": MOMENTUM,
    }


def runs(document: dict, task: str, factor: int) -> list[dict]:
    """The rows of all seeds, in order; none unless all are there and up to date."""
    rows = document["results"].get("switching", {})
    adamw = winner(document, task, SPLIT.name)
    found = [rows.get(key(task, factor, seed)) for seed in SEEDS]
    if adamw is None or None in found:
        return []
    settings = switched(adamw, factor)
    return found if all(row["settings"] == settings for row in found) else []
