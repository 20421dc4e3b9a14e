"""Exact polar factors and inverse roots, through SVD, QDWH and eigh.

They cost far more than Newton-Schulz and serve as references, for small matrices, and
for what polynomials cannot do (roots of accumulated statistics).
"""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optax_muon._newton_schulz import normalize

# By default a TPU rounds float32 operands to bfloat16.
exact_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def polar_svd(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
    """U_r V_r^T of X = U_r S_r V_r^T, r being the numerical rank.

    Directions with sigma <= max(m, n) eps sigma_1 are noise and get no step, as
    `numpy.linalg.matrix_rank` counts; so zeros give zeros.
    """
    u, s, vh = jnp.linalg.svd(normalize(x), full_matrices=False)
    return exact_matmul(u * (s > _cutoff(s, x.shape))[..., None, :], vh)


def polar_qdwh(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
    """The polar factor by QDWH (Nakatsukasa, Bai, Gygi, 2010), one matrix at a time.

    Unlike `polar_svd` it completes a matrix without full rank by directions of its
    own; zeros give zeros all the same.
    """
    stack = normalize(x).reshape((-1, *x.shape[-2:]))
    return lax.map(_qdwh, stack).reshape(x.shape)


def _qdwh(x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    tall = x.shape[0] >= x.shape[1]
    unitary, *_ = lax.linalg.qdwh(x if tall else x.T)
    return unitary if tall else unitary.T


def inverse_root(
    statistic: Float[Array, "*batch n n"], order: int
) -> Float[Array, "*batch n n"]:
    """A^(-1 / order) of symmetric positive semi-definite A on the range of A.

    Eigenvalues up to n eps lambda_1 are rounding noise of zero and map to zero: the
    Moore-Penrose convention, which needs no epsilon. Overflowed statistics give NaN.
    """
    values, vectors = jnp.linalg.eigh(statistic)
    kept = values > _cutoff(values, statistic.shape)
    roots = jnp.where(kept, jnp.where(kept, values, 1) ** (-1 / order), 0)
    root = exact_matmul(vectors * roots[..., None, :], vectors.mT)
    finite = jnp.isfinite(statistic).all((-2, -1), keepdims=True)
    return jnp.where(finite, root, jnp.nan)


def _cutoff(
    spectrum: Float[Array, "*batch k"], shape: tuple[int, ...]
) -> Float[Array, "*batch 1"]:
    eps = jnp.finfo(spectrum.dtype).eps
    return max(shape[-2:]) * eps * spectrum.max(axis=-1, keepdims=True)
