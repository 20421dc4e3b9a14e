"""A small model, and optimizers of optax.contrib and ours that are to move it alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers as Numbers

SHAPES = {
    "tall": (6, 4),
    "wide": (4, 6),
    "square": (5, 5),
    "layers": (3, 4, 6),
    "query": (4, 2, 3),
    "bias": (6,),
}
NUMBERS = {
    "tall": Numbers(),
    "wide": Numbers(1, 0),
    "square": Numbers(-1, -2),
    "layers": Numbers(1, 2),
    "query": Numbers(0, (1, 2)),
    "bias": None,
}

# The bound that was set: 1e-5 of a leaf's largest entry. Both sides round sums of
# float32 in their own order, an ulp of 6e-8, and five steps of Keller Jordan's magnify
# that up to 485 times where singular values are small. (3e-6 was seen.)
TOLERANCE = 1e-5


@functools.cache
def draw(seed, dtype=jnp.float32):
    """A tree like the model: parameters, or gradients."""
    rng = np.random.default_rng(seed)
    tree = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    # A random square matrix may be nearly singular, which would magnify most.
    tree["square"] += 3 * np.eye(5)
    return {name: jnp.asarray(x, dtype) for name, x in tree.items()}


def train(tx, state, params, seeds):
    """(updates of each step, last state, last parameters) on the gradients `seeds`."""
    update = jax.jit(tx.update)
    steps = []
    for seed in seeds:
        gradient = {name: draw((seed, 1))[name] for name in params}
        step, state = update(gradient, state, params)
        params = optax.apply_updates(params, step)
        steps.append(step)
    return steps, state, params


def assert_alike(actual, expected, tolerance=TOLERANCE):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
