"""Extreme singular values of matrices from products with vectors alone: no SVD.

Golub and Kahan's bidiagonalization (1965): from a unit vector v_1 on the shorter side,

  alpha_k u_k = A v_k - beta_{k-1} u_{k-1},  beta_k v_{k+1} = A^T u_k - alpha_k v_k

and the singular values of the bidiagonal B (alpha on its diagonal, beta above it) lie
between those of A and approach its extreme ones: Lanczos' method for A^T A. Vectors are
not orthogonalized again: rounding delays convergence but leaves B's values in the band
of A's (Paige, 1980), up to about eps of A's largest in A^T A.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_muon._bidiagonal import extremes
from optax_muon._linear_maps import (
    LinearMap,
    linear_maps,
    of_shorter_sides,
    per_matrix,
)
from optax_muon._norms import nonzero
from optax_muon._statistics import Matrices

# In 20 draws each of Gaussian and of decaying spectra, of 64 to 256 rows, and of what
# Keller Jordan's five steps make of them, 8, 16 and 24 steps missed the largest value
# by at most 4.2, 1.2 and 0.2 %, and the smallest after Newton-Schulz by 0.15, 0.015 and
# 0.003.
STEPS = 16
# Hutchinson's estimate of a squared norm then has a standard deviation of at most
# sqrt(2 / (4 n)) of it where n singular values contribute alike: 9 % at n = 64.
PROBES = 4
# Of the first vector; probes have the next ones. The day of Muon's post, as 0 or 1 may
# have drawn the matrices as well, with which signs should have nothing in common.
_SEED = 20241208


class Spectrum(NamedTuple):
    """Of the matrices of a leaf; arrays are [*batch], or [*batch, parts].

    Attributes:
      rms: the root mean square of the singular values, ||X||_F / sqrt(min(in, out)),
        but 1 for a matrix of zeros.
      smallest, largest: singular values over `rms`; zeros for a matrix of zeros.
    """

    rms: jax.Array
    smallest: jax.Array
    largest: jax.Array


def spectrum_of(x: jax.Array, matrices: Matrices) -> Spectrum:
    """The spectrum of each matrix of a leaf that is not empty."""
    maps = linear_maps(x, matrices)
    bands = {side: extremes(*_bidiagonalized(a)) for side, a in maps.items()}
    smallest, largest = (
        of_shorter_sides({side: band[end] for side, band in bands.items()}, matrices)
        for end in (0, 1)
    )
    rms = next(iter(maps.values())).rms
    return Spectrum(matrices.without_axes(rms), smallest, largest)


def orthogonality_error(
    x: jax.Array, matrices: Matrices, spectrum: Spectrum
) -> jax.Array:
    """||A A^T - I||_F / sqrt(n), of n singular values: the RMS of sigma^2 - 1.

    By Hutchinson's estimate (1990), the mean of ||(A^T A - I) z||^2 over random signs
    z; but at least what the extreme singular values alone amount to, which it may miss.

    Args:
      x, matrices: as in `spectrum_of`.
      spectrum: what that gave.
    """
    n = per_matrix(matrices, min)
    residuals = {
        side: _mean_squared_residual(a) for side, a in linear_maps(x, matrices).items()
    }
    squared = of_shorter_sides(residuals, matrices) / n
    farthest = jnp.maximum(
        jnp.abs(spectrum.largest**2 - 1), jnp.abs(spectrum.smallest**2 - 1)
    )
    return jnp.maximum(jnp.sqrt(squared), farthest / jnp.sqrt(n))


def _mean_squared_residual(a: LinearMap) -> jax.Array:
    """The mean of ||(A^T A - I) z||^2 over the probes z."""

    def add(total: jax.Array, z: jax.Array) -> tuple[jax.Array, None]:
        return total + a.domain_norm(a.adjoint(a.apply(z)) - z) ** 2, None

    probes = jnp.stack([a.signs(_SEED + 1 + i) for i in range(PROBES)])
    total, _ = lax.scan(add, a.zeros()[2], probes)
    return a.matrices.without_axes(total) / PROBES


def _bidiagonalized(a: LinearMap) -> tuple[jax.Array, jax.Array]:
    """alpha and beta, [STEPS, *batch]; the last beta is not B's."""

    def step(carry: tuple[jax.Array, ...], _: None) -> tuple:
        v, u, beta = carry
        u = a.apply(v) - beta * u
        alpha = a.range_norm(u)
        u = u / nonzero(alpha)
        v = a.adjoint(u) - alpha * v
        beta = a.domain_norm(v)
        # At the end of the Krylov space beta is 0, and all that follows; or rounding,
        # from which another space begins, whose values lie in the band as well.
        v = v / nonzero(beta)
        return (v, u, beta), tuple(a.matrices.without_axes(x) for x in (alpha, beta))

    signs = a.signs(_SEED)
    _, u, beta = a.zeros()
    start = signs / a.domain_norm(signs), u, beta
    return lax.scan(step, start, length=STEPS)[1]
