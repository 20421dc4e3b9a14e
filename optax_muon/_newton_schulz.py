"""The Newton-Schulz iteration: odd polynomials applied to the singular values.

An odd polynomial p acts on X = U S V^T as U p(S) V^T, so a chain of them that takes
(0, 1] to about 1 takes X to about its polar factor U V^T with matrix products alone
(Higham, Functions of Matrices, 2008, chapter 8; Jordan et al., Muon, 2024).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32, widen
from optax_muon._polynomials import Row
from optax_muon._products import xla as products


def newton_schulz(
    x: Float[Array, "*batch m n"], rows: tuple[Row, ...], dtype: jnp.dtype
) -> Float[Array, "*batch m n"]:
    """p_T(... p_1(x / ||x||_F)) for the polynomials (a, b, c) in `rows`.

    Args:
      x: matrices; each is normalised by its own Frobenius norm.
      rows: one (a, b, c) for each step.
      dtype: what operands are stored in; sums and epilogues are at least float32.

    Returns:
      Matrices in the accumulation dtype. Zeros give zeros; a NaN or Inf makes its own
      matrix NaN and no other.
    """
    wide = x.shape[-2] <= x.shape[-1]
    x = normalize(x)
    x = _direct(x if wide else x.mT, rows, dtype)
    return x if wide else x.mT


def normalize(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
    """x / ||x||_F in the accumulation dtype, exact for any magnitude; 0 stays 0.

    An exact power of two first brings the largest entry into [1, 2), so that squares
    neither overflow nor vanish; then the norm is at least 1 unless x is 0, and no
    epsilon is needed.
    """
    x = widen(x)
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    _, exponent = jnp.frexp(largest)  # largest = f 2^exponent, f in [1/2, 1)
    # Powers of two outside the normal numbers would be flushed to zero.
    smallest = jnp.finfo(x.dtype).minexp
    exponent = jnp.clip(1 - exponent, smallest, -smallest)
    x = x * jnp.ldexp(jnp.ones_like(largest), exponent)
    norm = jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True))
    return x / jnp.maximum(norm, 1)


def _direct(
    x: Float[Array, "*batch n m"], rows: tuple[Row, ...], dtype: jnp.dtype
) -> Float[Array, "*batch n m"]:
    """Per step A = X X^T; B = b A + c A A; X = a X + B X, on the short side n <= m."""
    accumulation = at_least_float32(dtype)
    table = jnp.asarray(rows, accumulation).reshape(-1, 3)

    def step(k: Array, x: Float[Array, "*batch n m"]) -> Float[Array, "*batch n m"]:
        a, b, c = table[k]
        low = x.astype(dtype)
        gram = products.symmetric_product(low)
        poly = products.symmetric_product(gram.astype(dtype), add=gram, alpha=c, beta=b)
        return products.product(poly.astype(dtype), low, add=x, beta=a)

    return lax.fori_loop(0, len(rows), step, x.astype(accumulation))
