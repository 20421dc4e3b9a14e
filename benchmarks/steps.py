"""Seconds a step of every contestant, interleaved: training runs are no clock.

Each sample is a chunk of steps of the whole training: model, gradient and update. All
contestants take their turns in one process, and ratios are taken within a round.
"""

from collections.abc import Callable, Sequence

import jax

import machine
import training
from contestants import Contestant
from ledger import TUNING_SEED, Ledger
from rivals import ADAMW
from tasks import CHUNK, Task
from timing import digits, interleave, ratios, summary

ROUNDS = 7


def time_steps(
    task: Task, entrants: Sequence[Contestant], ledger: Ledger, check: Callable
) -> None:
    """Time all of them, and AdamW, unless all are in the file."""
    row = ledger.row("times", task.name)
    if row is not None and {one.name for one in entrants} <= row["seconds"].keys():
        return
    check()
    field = {one.name: one for one in (ADAMW, *entrants)}
    samples = interleave(
        {name: chunk_of_steps(task, one) for name, one in field.items()}, ROUNDS, 0.0
    )
    seconds = {name: [s / CHUNK for s in taken] for name, taken in samples.items()}
    ledger.put(
        "times",
        task.name,
        {
            "source": machine.source(),
            "processors": machine.cores(),
            "steps": CHUNK,
            "seconds": {name: summary(taken) for name, taken in seconds.items()},
            "by_adamw": {
                name: ratios(taken, seconds[ADAMW.name])
                for name, taken in seconds.items()
            },
            "samples": {
                name: [digits(s) for s in taken] for name, taken in seconds.items()
            },
        },
    )


def chunk_of_steps(task: Task, one: Contestant) -> Callable[[int], None]:
    """The chunk's program on one chunk's batches, from the state that it left."""
    begin, advance, _ = training.programs(task, one)
    params = task.start(TUNING_SEED)
    state = training.State(params, begin(params, one.start))
    batches = next(iter(task.chunks(TUNING_SEED)))[1]

    def run(repeats: int) -> None:
        nonlocal state
        for _ in range(repeats):
            state, _ = advance(state, one.start, batches)
        jax.block_until_ready(state)

    return run
