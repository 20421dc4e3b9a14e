"""A task to learn: parameters, data and a loss, and how long a run is."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# Steps that run as one program; a run is judged between two of them. On two cores the
# GPT's step took two thirds of the processor time it takes as a program of its own,
# which allocates its intermediate results anew each time.
CHUNK = 25


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What contestants are compared on.

    Attributes:
      name: on the command line and in the results.
      about: in a line, for the tables.
      unit: of the loss.
      config: all that decides its numbers, as JSON.
      steps: updates of a run, a multiple of CHUNK.
      trials: how many each contestant gets to find its settings.
      start: parameters from a seed.
      batch: (seed, step) -> arrays; they depend on nothing else.
      loss: (params, batch) -> a scalar.
      max_logits: (params, batch) -> what `optax_muon.qk_clip` wants to be told.
      validation: as many batches, in one more axis in front, as the mean is taken over.
    """

    name: str
    about: str
    unit: str
    config: dict
    steps: int
    trials: int
    start: Callable[[int], Any]
    batch: Callable[[int, int], Any]
    loss: Callable[[Any, Any], jax.Array]
    max_logits: Callable[[Any, Any], Any]
    validation: Any

    def __post_init__(self):
        if self.steps % CHUNK:
            raise ValueError(
                f"steps={self.steps} of task {self.name} is no multiple of {CHUNK}, "
                f"the steps of one program; take {self.steps // CHUNK * CHUNK}."
            )

    def chunks(self, seed: int) -> Iterator[tuple[int, Any]]:
        """The step that each chunk ends with, and its batches, stacked."""
        for first in range(0, self.steps, CHUNK):
            batches = [self.batch(seed, first + index) for index in range(CHUNK)]
            yield first + CHUNK, jax.tree.map(lambda *rows: np.stack(rows), *batches)

    def conditions(self) -> dict:
        """What the results file says of it: rows of another must not be mixed in.

        The number of trials is not among it: more of them add to the same search.
        """
        about = {"about": self.about, "unit": self.unit, "steps": self.steps}
        return about | self.config
