"""Ten steps of an optimizer beside a reference, matrix by matrix.

Tolerances of 1e-9 leave a factor of a thousand or more for what ten steps of float64
decompositions round, of matrices with condition numbers below 1000. Where polynomials
take the place of exact polar factors it is 1e-6: their slopes at 0, up to 2e3 in sum,
magnify what the Gram form rounds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_muon
from optax_muon import MatrixAxes, Svd
from tests import references

STEPS, LR, ATOL = 10, 0.1, 1e-9

# Wide and tall; layers whose outputs are heads; a matrix for each head; three in one.
LEAVES = {
    "wide": ((4, 6), MatrixAxes(0, 1)),
    "tall": ((6, 4), MatrixAxes(0, 1)),
    "layers": ((2, 5, 2, 3), MatrixAxes(1, (2, 3))),
    "per_head": ((6, 2, 3), MatrixAxes(0, 2)),
    "fused": ((4, 9), MatrixAxes(0, 1, fan_out_parts=(5, 2, 2))),
    "outputs": ((9, 4), MatrixAxes(0, 1, fan_in_parts=(5, 4))),
}
AXES = {name: axes for name, (_, axes) in LEAVES.items()}
SEPARATE = {
    name: leaf for name, leaf in LEAVES.items() if name not in ("fused", "outputs")
}


def draw(seed, leaves=LEAVES):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape)) for name, (shape, _) in leaves.items()
    }


def matrices_of(leaf, axes):
    """The leaf's matrices, parts and all, as a list of arrays [fan_in, fan_out]."""
    view = axes.view(leaf.shape)
    order = view.batch_axes + view.fan_in_axes + view.fan_out_axes
    stack = np.asarray(leaf).transpose(order).reshape(view.matrices)
    side = 1 if view.fan_in_parts else 2
    parts = np.split(stack, np.cumsum(view.parts)[:-1], side) if view.parts else [stack]
    return [matrix for part in parts for matrix in part]


def train(tx, params, gradients):
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_follows(tx, reference, leaves=LEAVES, atol=ATOL):
    """Ten steps of `tx` are those of the reference, matrix by matrix."""
    params = draw(0, leaves)
    gradients = [draw(seed, leaves) for seed in range(1, STEPS + 1)]
    found = train(tx, params, gradients)
    for name, (_, axes) in leaves.items():
        columns = zip(*(matrices_of(g[name], axes) for g in gradients), strict=True)
        for w, result, of_matrix in zip(
            matrices_of(params[name], axes),
            matrices_of(found[name], axes),
            columns,
            strict=True,
        ):
            expected = reference(w, of_matrix)
            np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


def muon(**arguments):
    fixed = {"momentum": 0.95, "orthogonalizer": Svd(), "matrix_axes": AXES}
    arguments = fixed | arguments
    return optax_muon.muon(LR, **arguments)


def reference(name, **arguments):
    return functools.partial(getattr(references, name), **({"lr": LR} | arguments))
