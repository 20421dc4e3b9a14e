"""Products that compute symmetric matrices from their lower halves: for the CPU.

A stack is cut into its upper and lower rows, and a symmetric matrix into four blocks,
of which the one above the diagonal is never computed: of eight block products, six are
left. The blocks stay apart through the whole iteration, because mirroring one would be
a transposition, which costs XLA's CPU more than the products it saves.

For the direct form alone. Computing one block for two makes products symmetric to the
last bit: rounding that turned directions only one way, which the next product forgets,
turns them both ways and grows. In the Gram form errors of 6e-4 became 0.7.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_muon._products.xla import Scalar, dot, weighted_sum


class Rows(NamedTuple):
    """A stack of matrices, cut between two rows."""

    upper: Float[Array, "*batch p m"]
    lower: Float[Array, "*batch q m"]


class Symmetric(NamedTuple):
    """The blocks on and below the diagonal of a stack of symmetric matrices."""

    upper: Float[Array, "*batch p p"]
    lower: Float[Array, "*batch q p"]
    last: Float[Array, "*batch q q"]


def split(x: Float[Array, "*batch n m"]) -> Rows:
    """The upper and the lower half of the rows; n must be at least 2."""
    half = x.shape[-2] // 2
    return Rows(x[..., :half, :], x[..., half:, :])


def join(x: Rows) -> Float[Array, "*batch n m"]:
    """The inverse of `split`."""
    return jnp.concatenate(x, axis=-2)


def gram(x: Rows) -> Symmetric:
    """x x^T."""
    rows = partial(dot, contract=(-1, -1))
    return Symmetric(
        rows(x.upper, x.upper), rows(x.lower, x.upper), rows(x.lower, x.lower)
    )


def symmetric_product(
    s: Symmetric,
    t: Symmetric,
    *,
    alpha: Scalar = 1.0,
    plus: Sequence[tuple[Scalar, Symmetric]] = (),
) -> Symmetric:
    """alpha s t + the weighted matrices `plus`."""
    upper = dot(s.upper, t.upper) + dot(s.lower, t.lower, contract=(-2, -2))
    lower = dot(s.lower, t.upper) + dot(s.last, t.lower)
    last = dot(s.lower, t.lower, contract=(-1, -1)) + dot(s.last, t.last)
    return _weighted_sum((alpha, Symmetric(upper, lower, last)), *plus)


def product(s: Symmetric, x: Rows, *, plus: Sequence[tuple[Scalar, Rows]] = ()) -> Rows:
    """s x + the weighted matrices `plus`."""
    upper = dot(s.upper, x.upper) + dot(s.lower, x.lower, contract=(-2, -2))
    lower = dot(s.lower, x.upper) + dot(s.last, x.lower)
    return _weighted_sum((1.0, Rows(upper, lower)), *plus)


def _weighted_sum(*terms: tuple[Scalar, Any]) -> Any:
    weights, matrices = zip(*terms, strict=True)
    return jax.tree.map(
        lambda *blocks: weighted_sum(*zip(weights, blocks, strict=True)), *matrices
    )
