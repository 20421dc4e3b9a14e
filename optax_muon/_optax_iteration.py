"""The Newton-Schulz iteration of optax.contrib.muon, for `like_optax`.

It differs from `NewtonSchulz` in what a user can see: it adds eps to norms, knows other
norms, takes any coefficients, and rounds operands and coefficients to the leaf's dtype.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from optax_muon import _checks
from optax_muon._casts import widen
from optax_muon._choice import products_of_direct
from optax_muon._coefficients import COEFFICIENTS
from optax_muon._exact import exact_matmul
from optax_muon._loops import looped
from optax_muon._newton_schulz import direct
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._polynomials import Row

STANDARD: Row = COEFFICIENTS["keller_jordan"].rows[0]

# optax's names of tables.
PRESETS: Mapping[str, Any] = MappingProxyType(
    {"standard": STANDARD, "dion": COEFFICIENTS["you_jiacheng"].rows}
)

# What the statistics of AOL and Schatten-4 are kept above; in optax 0.2.8 it is not
# `eps`, but a default that nothing overrides.
_FLOOR = 1e-8

Matrices = Float[Array, "*batch n m"]


def _frobenius(x: Matrices, eps: Any) -> Matrices:
    """X / (||X||_F + eps): K. Jordan's muon.py, 2024."""
    return x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps)


def _spectral(x: Matrices, eps: Any) -> Matrices:
    """X / (||X||_2 + eps): the largest singular value becomes 1."""
    return x / (jnp.linalg.norm(x, 2, axis=(-2, -1), keepdims=True) + eps)


def _aol(x: Matrices, eps: Any) -> Matrices:
    """D X with D_ii = (sum_j |X X^T|_ij)^(-1/2), which bounds ||X||_2 by 1.

    Almost-orthogonal layers (Turbo-Muon, Boissin et al., arXiv 2512.04632). It changes
    the polar factor itself.
    """
    del eps
    row_sums = jnp.abs(exact_matmul(x, x.mT)).sum(-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(row_sums, _FLOOR))


def _schatten(x: Matrices, eps: Any) -> Matrices:
    """X / ||X X^T||_F^(1/2): by the Schatten-4 norm.

    Grishina et al., Accelerating Newton-Schulz Iteration, arXiv 2506.10935.
    """
    del eps
    norm = jnp.linalg.norm(exact_matmul(x, x.mT), axis=(-2, -1), keepdims=True)
    return x * lax.rsqrt(jnp.maximum(norm, _FLOOR))


# Norms divide X before the first step; scalings are a part of it.
_NORMS = {"frobenius": _frobenius, "spectral": _spectral}
_SCALINGS = {"aol": _aol, "schatten": _schatten}
PRECONDITIONINGS: Mapping[str, Callable[[Matrices, Any], Matrices]] = MappingProxyType(
    _NORMS | _SCALINGS
)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "repeats", "eps"],
    meta_fields=["preconditioning"],
)
@dataclasses.dataclass(frozen=True, eq=False)  # arrays do not compare
class OptaxIteration(Orthogonalizer, static=False):
    """optax.contrib's iteration; `optax.inject_hyperparams` may trace its numbers.

    Attributes:
      rows: [steps, 3], the (a, b, c) of each step.
      repeats: int32 scalar, how often to go through them; None means once.
      eps: added to norms.
      preconditioning: a key of `PRECONDITIONINGS`.
    """

    rows: Any
    repeats: Any
    eps: Any
    preconditioning: str

    @property
    def either_orientation(self) -> bool:
        # AOL scales the rows of a wide matrix, and of a square one those it is given.
        return self.preconditioning != "aol"

    def input_dtype(self, dtype: np.dtype) -> np.dtype:
        return dtype

    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        return looped(self._run, x)

    def _run(
        self, platform: str, x: Float[Array, "*batch m n"]
    ) -> Float[Array, "*batch m n"]:
        wide = x.shape[-2] <= x.shape[-1]
        dtype, x = x.dtype, widen(x if wide else x.mT)
        if len(self.rows) or self.preconditioning in _NORMS:
            x = PRECONDITIONINGS[self.preconditioning](x, self.eps)
        if len(self.rows):
            x = self._iterate(x, dtype, products_of_direct(x.shape[-2], platform))
        return x if wide else x.mT

    def _iterate(
        self, x: Float[Array, "*batch n m"], dtype: np.dtype, products: ModuleType
    ) -> Float[Array, "*batch n m"]:
        rows = jnp.asarray(self.rows).astype(dtype)

        def once(_: Any, x: jax.Array) -> jax.Array:
            return direct(x, rows, dtype, products)

        return (
            once(0, x)
            if self.repeats is None
            else lax.fori_loop(0, self.repeats, once, x)
        )


def optax_iteration(
    ns_coeffs: Any, ns_steps: Any, eps: Any, preconditioning: str
) -> OptaxIteration:
    """The iteration that these arguments of `optax.contrib.muon` ask for.

    Raises:
      ValueError: an unknown name; coefficients of another shape than [3] or [rows, 3];
        more rows than `ns_steps`, or fewer than 0 steps.
      TypeError: `ns_steps` that is no int.
    """
    _checks.check_choice("preconditioning", preconditioning, PRECONDITIONINGS)
    _checks.check_coefficient("eps", eps, below=math.inf)
    if isinstance(ns_coeffs, str):
        _checks.check_choice("ns_coeffs", ns_coeffs, PRESETS)
        ns_coeffs = PRESETS[ns_coeffs]
    rows, steps, repeats = _as_rows(ns_coeffs), _as_int(ns_steps), None
    if rows.ndim == 1 and steps is None:
        rows, repeats = rows[None], ns_steps
    elif rows.ndim == 1:
        rows = rows[None].repeat(steps, axis=0)
    elif steps is not None and len(rows) > steps:
        raise ValueError(
            f"ns_coeffs has {len(rows)} rows, but ns_steps={steps}: of a table each "
            f"row is a step; pass ns_steps={len(rows)}, or fewer rows."
        )
    return OptaxIteration(rows, repeats, eps, preconditioning)


def _as_rows(ns_coeffs: Any) -> Any:
    """[3] or [rows, 3]; a NumPy array unless there are JAX's, possibly traced."""
    arrays = any(isinstance(x, jax.Array) for x in jax.tree.leaves(ns_coeffs))
    try:
        rows = (jnp if arrays else np).asarray(ns_coeffs, float)
    except (TypeError, ValueError):  # rows of several lengths, or no numbers
        rows = np.zeros(())
    if rows.ndim not in (1, 2) or rows.shape[-1] != 3:
        raise ValueError(
            f"ns_coeffs={ns_coeffs!r} is no table: pass a name ({', '.join(PRESETS)}), "
            "three numbers (a, b, c), or rows of three numbers, one a step."
        )
    return rows


def _as_int(ns_steps: Any) -> int | None:
    """The number of steps, or None if it is traced."""
    try:
        steps = operator.index(ns_steps)
    except jax.errors.TracerIntegerConversionError:
        return None
    except TypeError:
        raise TypeError(f"ns_steps={ns_steps!r} must be an int.") from None
    if steps < 0:
        raise ValueError(f"ns_steps={steps} must be at least 0.")
    return steps
