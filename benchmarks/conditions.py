"""The tasks of the table: the GPT of `make train`, changed in one way at a time.

A quarter of the batch has as many steps, four times the batch half as many: so these
ask what noisier and cleaner gradients change for an optimizer, and what it costs stays
bearable, not how far a budget of text carries.

The first task is searched with 10 trials each. The others begin at the best that each
contestant had there, and get 4; the autoencoder, where rates lie elsewhere and a run
costs little, 16.
"""

import functools

from autoencoder import autoencoder
from byte_gpt import byte_gpt
from gpt_example import loop, model
from tasks import Task

FIRST = "gpt"
WIDTH = model.GPTConfig.width
BATCH, STEPS = loop.TrainConfig.batch, loop.TrainConfig.steps

MAKERS = {
    FIRST: lambda name: gpt(name, trials=10),
    "gpt_width_128": lambda name: gpt(name, width=2 * WIDTH),
    "gpt_batch_4": lambda name: gpt(name, batch=BATCH // 4),
    "gpt_batch_64": lambda name: gpt(name, batch=4 * BATCH, steps=STEPS // 2),
    "autoencoder": lambda name: autoencoder(name, batch=128, steps=500, trials=16),
}


def gpt(
    name: str,
    *,
    width: int = WIDTH,
    batch: int = BATCH,
    steps: int = STEPS,
    trials: int = 4,
) -> Task:
    config = model.GPTConfig(width=width)
    return byte_gpt(name, config, batch=batch, steps=steps, trials=trials)


@functools.cache
def task(name: str) -> Task:
    """The task of that name, with its data."""
    return MAKERS[name](name)
