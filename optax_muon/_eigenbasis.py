"""Second moments in the eigenbasis of G G^T and G^T G, which QR follows: SOAP.

Each function sees the matrices [batch, fan_in, fan_out] of one leaf. A side of them
whose statistics are a scalar is not rotated: its basis is the identity.

References:
  Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, arXiv 2409.11321,
  algorithms 3 and 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optax_muon._exact import exact_matmul

Stack = Float[Array, "batch fan_in fan_out"]
Side = Float[Array, "batch n n"] | Float[Array, ""]
Scalar = Float[Array, ""]


class Statistics(NamedTuple):
    """What is kept of one leaf's gradients; `left` is the side of fan_in.

    Attributes:
      second_moment: V, of gradients in the basis; a scalar if neither side is rotated.
      left, right: running means of G G^T and G^T G.
      left_basis, right_basis: Q_L and Q_R; zeros before the first gradient.
    """

    second_moment: Stack | Scalar
    left: Side
    right: Side
    left_basis: Side
    right_basis: Side


# Compiled, like all that is done leaf by leaf: equal leaves are then traced once.
@jax.jit
def preconditioned(
    u: Stack,
    g: Stack,
    stats: Statistics,
    first: Bool[Array, ""],
    beta2: Scalar,
    beta: Scalar,
    eps: Scalar,
) -> tuple[Stack, Statistics]:
    """U divided by root mean squares in the basis, and the statistics with G in them.

    Args:
      u: the direction to precondition.
      g: the new gradient, of the same dtype.
      stats: those of the gradients before it, of at least one side.
      first: whether there are none, nor a basis.
      beta2: decay of V.
      beta: decay of L and R.
      eps: what is added to the root of V.

    Returns:
      The direction, as long as U, at first U itself; NaN where statistics overflow. The
      statistics, in the same basis.
    """
    moment = beta2 * stats.second_moment + (1 - beta2) * _into(g, stats) ** 2
    root = jnp.sqrt(moment) + eps
    # 0 where eps is, or has no place in its dtype: then there is nothing to divide by.
    divided = _into(u, stats) / jnp.where(root > 0, root, 1)
    direction = _length(u) * _unit(_out_of(divided, stats))
    direction = jnp.where(first, u, direction)
    stats = stats._replace(
        second_moment=moment,
        left=_mean(stats.left, g, beta),
        right=_mean(stats.right, g.mT, beta),
    )
    return jnp.where(_are_finite(stats), direction, jnp.nan), stats


def _mean(old: Side, x: Array, beta: Scalar) -> Side:
    return beta * old + (1 - beta) * exact_matmul(x, x.mT) if old.ndim else old


def _are_finite(stats: Statistics) -> Bool[Array, "batch 1 1"]:
    means = (stats.second_moment, stats.left, stats.right)
    finite = [jnp.isfinite(x).all((-2, -1), keepdims=True) for x in means if x.ndim]
    return jnp.stack(finite).all(0)


def _length(x: Float[Array, "batch m n"]) -> Float[Array, "batch 1 1"]:
    """||X||_F, of squares that neither overflow nor all vanish."""
    largest = jnp.abs(x).max((-2, -1), keepdims=True)
    squares = (x / jnp.where(largest > 0, largest, 1)) ** 2
    return largest * jnp.sqrt(squares.sum((-2, -1), keepdims=True))


def _unit(x: Float[Array, "batch m n"]) -> Float[Array, "batch m n"]:
    """X / ||X||_F, and zeros for zeros."""
    length = _length(x)
    return x / jnp.where(length > 0, length, 1)


def _into(x: Stack, stats: Statistics) -> Stack:
    """Q_L^T X Q_R."""
    x = exact_matmul(stats.left_basis.mT, x) if stats.left_basis.ndim else x
    return exact_matmul(x, stats.right_basis) if stats.right_basis.ndim else x


def _out_of(x: Stack, stats: Statistics) -> Stack:
    """Q_L X Q_R^T."""
    x = exact_matmul(stats.left_basis, x) if stats.left_basis.ndim else x
    return exact_matmul(x, stats.right_basis.mT) if stats.right_basis.ndim else x


def refreshed(
    stats: list[Statistics], count: Int[Array, ""], frequency: int
) -> list[Statistics]:
    """All leaves' statistics, in a new basis if `count` is a multiple of `frequency`.

    At 0 it is the eigenbasis of L and R, later one step towards it. All under a single
    condition: decompositions cost far more than products, and other steps skip them.
    """
    chosen = jnp.where(count % frequency > 0, 0, jnp.where(count == 0, 1, 2))
    return lax.switch(
        chosen,
        [
            lambda stats: stats,
            lambda stats: [_in_eigenbasis(one) for one in stats],
            lambda stats: [_in_followed_basis(one) for one in stats],
        ],
        stats,
    )


@jax.jit
def _in_eigenbasis(stats: Statistics) -> Statistics:
    """Q_L and Q_R are the eigenvectors of L and R, largest eigenvalue first."""
    return stats._replace(
        left_basis=_eigenbasis(stats.left), right_basis=_eigenbasis(stats.right)
    )


def _eigenbasis(statistic: Side) -> Side:
    if not statistic.ndim:
        return statistic
    return jnp.linalg.eigh(_unit(statistic)).eigenvectors[..., ::-1]


@jax.jit
def _in_followed_basis(stats: Statistics) -> Statistics:
    """Q_L <- qr(L Q_L) and Q_R <- qr(R Q_R), and V sorted as their columns were."""
    left, rows = _followed(stats.left, stats.left_basis)
    right, columns = _followed(stats.right, stats.right_basis)
    moment = stats.second_moment
    if rows.ndim:
        moment = jnp.take_along_axis(moment, rows[..., :, None], axis=-2)
    if columns.ndim:
        moment = jnp.take_along_axis(moment, columns[..., None, :], axis=-1)
    return stats._replace(second_moment=moment, left_basis=left, right_basis=right)


def _followed(statistic: Side, basis: Side) -> tuple[Side, Array]:
    """One step of orthogonal iteration, and the order in which it took the columns q.

    By <q, L q>, which estimates their eigenvalues: QR keeps the first ones best.
    """
    if not statistic.ndim:
        return basis, jnp.zeros([], int)
    # Of norm 1, for XLA's own QR takes squares, of what may have decayed for long.
    image = exact_matmul(_unit(statistic), basis)
    order = jnp.argsort(jnp.sum(basis * image, axis=-2), axis=-1, descending=True)
    image = jnp.take_along_axis(image, order[..., None, :], axis=-1)
    return jnp.linalg.qr(image).Q, order
