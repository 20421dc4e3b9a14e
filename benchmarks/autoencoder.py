"""A deep autoencoder of digits as a task: no language, no residual stream, no norm.

Eight layers squeeze 64 pixels through 16 numbers and back. Such networks are a classic
trial of optimizers (Hinton, Salakhutdinov, Science 313, 2006; Martens, ICML 2010):
gradients pass through every matrix in turn, so that one badly conditioned layer harms
all the others, where a transformer's residual stream leads around it.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

from tasks import Task

WIDTHS = (64, 256, 128, 64, 16, 64, 128, 256)
PIXELS = 64
WHITE = 16  # the largest value of a pixel in scikit-learn's digits
HELD_BACK = 357  # of 1,797 images, a fifth


class Autoencoder(nnx.Module):
    """Hidden layers of WIDTHS, and a readout of pixels, which is no hidden matrix."""

    def __init__(self, *, rngs: nnx.Rngs):
        sides = itertools.pairwise(WIDTHS)
        self.hidden = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in sides])
        self.readout = nnx.Linear(WIDTHS[-1], PIXELS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = jnp.tanh(layer(x))
        return self.readout(x)


def autoencoder(name: str, *, batch: int, steps: int, trials: int) -> Task:
    """The task on scikit-learn's digits, which come with the package."""
    train, validation = images()
    graphdef = nnx.split(Autoencoder(rngs=nnx.Rngs(0)))[0]

    def draw(seed: int, step: int) -> np.ndarray:
        rows = np.random.default_rng([seed, step]).integers(len(train), size=batch)
        return train[rows]

    return Task(
        name=name,
        about=f"autoencoder of digits, {len(WIDTHS)} layers, batch {batch}",
        unit="squared error of an image",
        config={"widths": [*WIDTHS, PIXELS], "batch": batch, "held_back": HELD_BACK},
        steps=steps,
        trials=trials,
        start=lambda seed: nnx.split(Autoencoder(rngs=nnx.Rngs(seed)))[1],
        batch=draw,
        loss=functools.partial(squared_error, graphdef),
        max_logits=lambda params, x: {},  # there is no attention
        validation=validation[None],
    )


def images() -> tuple[np.ndarray, np.ndarray]:
    """Training and validation images, split at random but always alike."""
    pixels = load_digits().data.astype(np.float32) / WHITE
    order = np.random.default_rng(0).permutation(len(pixels))
    return pixels[order[HELD_BACK:]], pixels[order[:HELD_BACK]]


def squared_error(graphdef: nnx.GraphDef, params: Any, x: jax.Array) -> jax.Array:
    """Summed over an image's pixels, the mean over images."""
    return jnp.square(nnx.merge(graphdef, params)(x) - x).sum(-1).mean()
