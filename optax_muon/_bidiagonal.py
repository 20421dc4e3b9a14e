"""The extreme singular values of small bidiagonal matrices, by bisection."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def extremes(
    alpha: Float[Array, "steps *batch"], beta: Float[Array, "steps *batch"]
) -> Float[Array, "2 *batch"]:
    """The smallest and the largest singular value of each B, from below.

    They are the positive eigenvalues of the symmetric tridiagonal matrix with zeros on
    its diagonal and alpha_1, beta_1, alpha_2, ... beside it (Golub, Kahan), which signs
    of pivots count (Sturm).
    """
    steps = len(alpha)
    # After the end of the Krylov space: alpha_1, which lies between B's extremes.
    alive = jnp.cumprod(beta[:-1] > 0, 0, dtype=bool)
    alpha = jnp.concatenate([alpha[:1], jnp.where(alive, alpha[1:], alpha[:1])])
    beside = jnp.stack([alpha, beta], 1).reshape(2 * steps, *alpha.shape[1:])[:-1]
    high = jnp.broadcast_to(alpha.max(0) + beta.max(0), (2, *alpha.shape[1:]))
    # Below the k-th of the ascending values there are fewer than k.
    rank = jnp.asarray([1, steps]).reshape(2, *[1] * (alpha.ndim - 1))

    def halve(_: Any, interval: tuple[jax.Array, jax.Array]) -> Any:
        low, high = interval
        middle = (low + high) / 2
        # Of NaN few are counted, so that low becomes NaN as well.
        fewer = _count_below(middle, beside**2) < rank
        return jnp.where(fewer, middle, low), jnp.where(fewer, high, middle)

    halvings = jnp.finfo(alpha.dtype).nmant + 1
    low, _ = lax.fori_loop(0, halvings, halve, (jnp.zeros_like(high), high))
    return low


def _count_below(x: jax.Array, squares: jax.Array) -> jax.Array:
    """How many singular values of B are below x > 0."""
    tiny = float(jnp.finfo(x.dtype).tiny) ** 0.5

    def pivot(carry: tuple[jax.Array, jax.Array], square: jax.Array) -> Any:
        before, count = carry
        before = jnp.where(jnp.abs(before) < tiny, -tiny, before)
        here = -x - square / before
        return (here, count + (here < 0)), None

    # The first pivot, -x, is negative.
    (_, negative), _ = lax.scan(pivot, (-x, jnp.ones_like(x, int)), squares)
    return negative - (len(squares) + 1) // 2
