"""Products in plain XLA: both forms are the array itself."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32

Scalar = Float[Array, ""] | float


def split(x: Float[Array, "*batch n m"]) -> Float[Array, "*batch n m"]:
    """x itself."""
    return x


def join(x: Float[Array, "*batch n m"]) -> Float[Array, "*batch n m"]:
    """x itself."""
    return x


def gram(x: Float[Array, "*batch n m"]) -> Float[Array, "*batch n n"]:
    """x x^T."""
    return dot(x, x, contract=(-1, -1))


def symmetric_product(
    s: Float[Array, "*batch n n"],
    t: Float[Array, "*batch n n"],
    *,
    alpha: Scalar = 1.0,
    plus: Sequence[tuple[Scalar, Float[Array, "*batch n n"]]] = (),
) -> Float[Array, "*batch n n"]:
    """alpha s t + the weighted matrices `plus`."""
    return weighted_sum((alpha, dot(s, t)), *plus)


def product(
    s: Float[Array, "*batch n n"],
    x: Float[Array, "*batch n m"],
    *,
    plus: Sequence[tuple[Scalar, Float[Array, "*batch n m"]]] = (),
) -> Float[Array, "*batch n m"]:
    """s x + the weighted matrices `plus`."""
    return weighted_sum((1.0, dot(s, x)), *plus)


def shifted(s: Float[Array, "*batch n n"], a: Scalar) -> Float[Array, "*batch n n"]:
    """s + a I."""
    return s + a * jnp.eye(s.shape[-1], dtype=s.dtype)


def dot(
    x: Float[Array, "*batch i j"],
    y: Float[Array, "*batch k l"],
    *,
    contract: tuple[int, int] = (-1, -2),
) -> Float[Array, "*batch p q"]:
    """x y over the axes `contract`, a pair of -1 and -2, in the accumulation dtype."""
    batch = tuple(range(x.ndim - 2))
    over = ((x.ndim + contract[0],), (y.ndim + contract[1],))
    # At a TPU's default precision, float32 operands are rounded to bfloat16.
    full = x.dtype.itemsize >= 4
    return lax.dot_general(
        x,
        y,
        (over, (batch, batch)),
        precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
        preferred_element_type=at_least_float32(x.dtype),
    )


def weighted_sum(*terms: tuple[Scalar, Float[Array, "*batch p q"]]) -> Array:
    """The sum of weight times matrix, in the dtype of the first matrix."""
    total = sum(weight * matrix for weight, matrix in terms)
    return jnp.asarray(total, terms[0][1].dtype)
