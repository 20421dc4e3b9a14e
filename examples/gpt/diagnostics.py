"""What `optax_muon.monitor` records of a run, as a CSV file that grows step by step."""

import csv
from pathlib import Path

import jax
import numpy as np
import optax

import optax_muon

# `matrix` numbers those of one leaf, such as stacked layers; of a single one it is "".
HEADER = ("step", "leaf", "matrix", "metric", "value")


class Diagnostics:
    """Records of every matrix, taken every few steps, one number a line.

    A run that resumes repeats the steps after its checkpoint, so their lines, if a
    crash left some, go first.
    """

    def __init__(self, path: Path, every: int):
        self.every = every
        self._path = path

    def watch(self, optimizer: optax.GradientTransformation):
        """The optimizer with records in its state."""
        return optax_muon.monitor(optimizer, every=self.every)

    def begin(self, done: int) -> None:
        """Keep what was recorded of the first `done` steps."""
        kept = []
        if done and self._path.exists():
            with self._path.open(newline="") as file:
                kept = [row for row in csv.reader(file) if row[0].isdecimal()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            writer.writerows(row for row in kept if int(row[0]) <= done)

    def write(self, opt_state: optax.OptState) -> None:
        """Add the records that the optimizer's state holds."""
        records = jax.device_get(optax_muon.read_records(opt_state))
        step = int(records.pop("step"))
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            for key, value in records.items():
                leaf, metric = key.rsplit("/", 1)
                for index, number in np.ndenumerate(value):
                    matrix = "/".join(map(str, index))
                    writer.writerow((step, leaf, matrix, metric, f"{number:.6g}"))
