"""The results of benchmarks/convergence.py on disk, which may be built in pieces.

Rows stand under the definition of their task and contestant. What is defined otherwise
today is refused, so that no table mixes two things of one name; what is new is added.
Two processes may work on one file, each on contestants of its own.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import machine
from store import Store, UsageError, load

# The reported seeds, and others to choose settings by: they must not be chosen by the
# noise that they are judged under. All trials run on one of those, and the best of them
# on the rest as well, for one seed's noise is as large as what neighbours differ by.
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 100
CONFIRMING_SEEDS = (101, 102)

PROTOCOL = {
    "command": "python benchmarks/convergence.py",
    "seeds": list(SEEDS),
    "tuning_seed": TUNING_SEED,
    "confirming_seeds": list(CONFIRMING_SEEDS),
    "schedule": "linear warm-up over a tenth of the steps, then half a cosine to zero",
}
# These do not touch the numbers: our own version is in the rows' `source`.
IRRELEVANT = ("torch", "optax_muon", "cpu_count")


def environment() -> dict:
    """Versions and hardware, so far as runs depend on them."""
    common = machine.environment()
    return {
        **{name: common[name] for name in common if name not in IRRELEVANT},
        **{name: machine.version(name) for name in ("flax", "scikit-learn")},
        "cpu_count": os.cpu_count(),  # of the machine: pieces may be bound to one
    }


# Parts whose rows are of one contestant, unless they name another.
UNNAMED = dict.fromkeys(("momenta", "switching", "transfer"), "muon")


class Ledger(Store):
    """Rows by part and by names joined with a slash: task, contestant, number."""

    remedy = "Name another --out, or delete that file to measure all anew"

    def __init__(self, path: Path):
        super().__init__(path, PROTOCOL | {"environment": environment()})

    def rows(self, part: str, *names: object) -> list[dict]:
        """All rows under these names, in the order in which they came."""
        prefix = key(*names, "")
        found = self.document["results"].get(part, {})
        return [row for name, row in found.items() if name.startswith(prefix)]

    def put(self, part: str, case: str, row: dict) -> None:
        """Add a row to those that are in the file by now."""
        with self._alone():
            if self._path.exists():
                self.document = load(self._path)
            super().put(part, case, row)

    def define(self, part: str, name: str, definition: dict) -> None:
        """Add a definition, or check that the one in the file is the same."""
        definition = json.loads(json.dumps(definition))  # as a file gives it
        stored = self.row(part, name)
        if stored is None:
            self.put(part, name, definition)
        elif stored != definition:
            changed = [key for key in definition if stored.get(key) != definition[key]]
            raise UsageError(
                "--out",
                self._path.name,
                f"{name} (of its {part}) was defined by another " + ", ".join(changed),
                "Give what is new a new name, name another --out, or drop the rows "
                f"with --forget {name}",
            )

    def forget(self, name: str) -> int:
        """Drop a task or contestant with all its rows; how many these were.

        Step times go with any contestant: all were measured in turn. Rows of the
        default recipe alone name no contestant (`UNNAMED`).
        """
        with self._alone():
            self.document = load(self._path)
            parts = self.document["results"]
            known = [*parts.get("tasks", ()), *parts.get("contestants", ())]
            if name not in known:
                raise UsageError(
                    "--forget",
                    name,
                    f"no task or contestant of {self._path.name} is called that",
                    f"Name one of {', '.join(known)}",
                )
            dropped = [
                (part, case)
                for part, rows in parts.items()
                for case in rows
                if name in case.split("/")
                or (part == "times" and name in parts["contestants"])
                or (
                    UNNAMED.get(part) == name
                    and not parts["contestants"].keys() & case.split("/")
                )
            ]
            for part, case in dropped:
                del parts[part][case]
            self._write()
        return len(dropped)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Between reading and writing no other process writes."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def key(*names: object) -> str:
    """Names as one case."""
    return "/".join(map(str, names))
