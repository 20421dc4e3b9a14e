"""Global batches, of which each process reads the windows of its own devices alone."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from corpus import Corpus


def rows_of(sharding: NamedSharding, devices: list, size: int) -> np.ndarray:
    """The rows of a batch of `size` that lie on `devices`, in order, each once."""
    slices = sharding.devices_indices_map((size,))
    return np.unique(
        np.concatenate([np.arange(size)[slices[device]] for device in devices])
    )


def windows(
    text: Corpus, seed: int, step: int, size: int, context: int, rows: np.ndarray
) -> np.ndarray:
    """These rows of the batch that `Corpus.batch` would give for the seed and step.

    All starts are drawn, which is cheap, so that no row depends on who else reads;
    only the rows' own text is read.
    """
    starts = np.random.default_rng([seed, step]).integers(
        len(text.train) - context, size=size
    )[rows]
    return text.train[starts[:, None] + np.arange(context + 1)].astype(np.int32)


class Feed:
    """The batches of a run, the same on any number of processes and devices."""

    def __init__(
        self, text: Corpus, sharding: NamedSharding, seed: int, size: int, context: int
    ):
        self._text, self._sharding, self._seed = text, sharding, seed
        self._size, self._context = size, context
        self._rows = rows_of(sharding, sharding.mesh.local_devices, size)

    def batch(self, step: int) -> jax.Array:
        """The global batch of a step, one byte longer than the context."""
        ours = windows(
            self._text, self._seed, step, self._size, self._context, self._rows
        )
        return jax.make_array_from_process_local_data(
            self._sharding, ours, (self._size, self._context + 1)
        )
