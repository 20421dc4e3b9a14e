"""The tasks of the table: the GPT of `make train`, changed in one way at a time.

The number of steps is the same at every batch. So the runs of a quarter and of four
times the batch ask what noisier and cleaner gradients change for an optimizer, not how
far a budget of text carries; at four times they cost four times as much, and at a
quarter with four times the steps they would cost as much as the first task.

The first task is searched with 10 trials each. The others begin at the best that each
contestant had there, and get 6; the autoencoder, where rates lie elsewhere and a run
costs little, 16.
"""

import functools

from autoencoder import autoencoder
from byte_gpt import byte_gpt
from gpt_example import loop, model
from tasks import Task

FIRST = "gpt"
WIDTH = model.GPTConfig.width
BATCH = loop.TrainConfig.batch

MAKERS = {
    FIRST: lambda name: gpt(name, trials=10),
    "gpt_width_128": lambda name: gpt(name, width=2 * WIDTH),
    "gpt_batch_4": lambda name: gpt(name, batch=BATCH // 4),
    "gpt_batch_64": lambda name: gpt(name, batch=4 * BATCH),
    "autoencoder": lambda name: autoencoder(name, batch=128, steps=500, trials=16),
}


def gpt(name: str, *, width: int = WIDTH, batch: int = BATCH, trials: int = 6) -> Task:
    return byte_gpt(name, model.GPTConfig(width=width), batch=batch, trials=trials)


@functools.cache
def task(name: str) -> Task:
    """The task of that name, with its data."""
    return MAKERS[name](name)
