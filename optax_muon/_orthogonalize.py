"""What to run for a stack of matrices: the method, the platform, the dtype.

An orthogonalizer is a configuration: frozen, hashable, picklable. It is not callable,
because `optax.inject_hyperparams` takes every callable argument for a schedule.
"""

import abc
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optax_muon import _checks, _exact
from optax_muon._casts import at_least_float32
from optax_muon._newton_schulz import newton_schulz
from optax_muon._polynomials import as_table


class Orthogonalizer(abc.ABC):
    """How to find the polar factor U V^T of every matrix U S V^T in a stack."""

    @abc.abstractmethod
    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        """The (approximate) polar factors; in any real dtype, zeros give zeros."""


@dataclasses.dataclass(frozen=True)
class NewtonSchulz(Orthogonalizer):
    """Newton-Schulz: `steps` odd quintics applied to the singular values.

    Attributes:
      coefficients: a name in `COEFFICIENTS`, or rows (a, b, c), one a step.
      steps: how many steps; None takes the table's own number. Fewer than the table has
        take its first rows; past its end the last row repeats.
      dtype: of the products' operands. None means bfloat16 on TPU and GPU, float32 on
        CPU, chosen for the platform that the program is compiled for; float64 input
        is then computed in float64 everywhere. Sums are at least float32.

    Raises:
      ValueError: unknown name, malformed rows, fewer than one step, no float dtype.

    >>> NewtonSchulz("keller_jordan", steps=3)
    NewtonSchulz(coefficients='keller_jordan', steps=3, dtype=None)

    References:
      Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
      Amsel et al., The Polar Express, arXiv 2505.16932, 2025.
    """

    coefficients: Any = "polar_express"
    steps: int | None = None
    _: dataclasses.KW_ONLY
    dtype: Any = None

    def __post_init__(self) -> None:
        table = as_table(self.coefficients)
        if not isinstance(self.coefficients, str):  # lists would not hash
            object.__setattr__(self, "coefficients", table)
        if self.steps is not None and (
            not isinstance(self.steps, int)
            or isinstance(self.steps, bool)
            or self.steps < 1
        ):
            raise ValueError(
                f"steps={self.steps!r} must be a positive int, or None for the "
                f"table's own {table.steps}: the loop's length is compiled in."
            )
        object.__setattr__(self, "dtype", _checks.float_dtype("dtype", self.dtype))

    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        rows = as_table(self.coefficients).schedule(self.steps)
        run = partial(newton_schulz, rows=rows)
        on_cpu = self.dtype or at_least_float32(x.dtype)
        elsewhere = self.dtype or _bfloat16_or_float64(x.dtype)
        return lax.platform_dependent(
            x,
            cpu=lambda x: _one_by_one(partial(run, dtype=on_cpu), x),
            default=partial(run, dtype=elsewhere),
        )


@dataclasses.dataclass(frozen=True)
class Svd(Orthogonalizer):
    """The exact polar factor U_r V_r^T by SVD; directions of rank noise get no step."""

    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        return _exact.polar_svd(x)


@dataclasses.dataclass(frozen=True)
class Qdwh(Orthogonalizer):
    """The exact polar factor by QDWH; matrices without full rank are completed."""

    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        return _exact.polar_qdwh(x)


OrthogonalizerLike = Orthogonalizer | Callable[[jax.Array], jax.Array]


def check_orthogonalizer(orthogonalizer: Any) -> None:
    """Raise unless `orthogonalizer` is a configuration or a function."""
    if isinstance(orthogonalizer, type) or not (
        isinstance(orthogonalizer, Orthogonalizer) or callable(orthogonalizer)
    ):
        raise TypeError(
            f"orthogonalizer={orthogonalizer!r} cannot be used; pass NewtonSchulz(...),"
            " Svd(), Qdwh() (instances, with the parentheses), or a function from "
            "[..., m, n] to [..., m, n]."
        )
    if type(orthogonalizer).__hash__ is None:
        raise TypeError(
            f"orthogonalizer={orthogonalizer!r} cannot be hashed, but it selects the "
            "program that is compiled; pass a plain function, or define __hash__."
        )


def orthogonalize(
    x: Float[Array, "*batch m n"], orthogonalizer: OrthogonalizerLike = NewtonSchulz()
) -> Float[Array, "*batch m n"]:
    """The polar factor U V^T of each matrix X = U S V^T, exact or approximate.

    Args:
      x: matrices [..., m, n] of a real floating dtype.
      orthogonalizer: `NewtonSchulz(...)`, `Svd()`, `Qdwh()`, or a function of
        your own from [..., m, n] to [..., m, n].

    Returns:
      [..., m, n] in `x.dtype`. Zeros give zeros; NaN or Inf spoil only their matrix.

    Raises:
      TypeError: an orthogonalizer of another type; complex or integer input.
      ValueError: fewer than two axes; a function that returns another shape.

    >>> x = jnp.array([[3.0, 0.0], [0.0, -0.5]])
    >>> print(orthogonalize(x, Svd()))
    [[ 1.  0.]
     [ 0. -1.]]
    """
    check_orthogonalizer(orthogonalizer)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"orthogonalize takes real floating matrices, got dtype {x.dtype}; split "
            "complex matrices into parts, or cast integers, before the call."
        )
    if x.ndim < 2:
        raise ValueError(
            f"orthogonalize takes matrices [..., m, n], got shape {x.shape}; reshape a "
            "vector to one column first."
        )
    if x.size == 0:
        return x
    return _polar(x, orthogonalizer)


@partial(jax.jit, static_argnums=1)  # so that calls outside jit compile once
def _polar(
    x: Float[Array, "*batch m n"], orthogonalizer: OrthogonalizerLike
) -> Float[Array, "*batch m n"]:
    if isinstance(orthogonalizer, Orthogonalizer):
        return orthogonalizer.polar_factor(x).astype(x.dtype)
    result = orthogonalizer(x)
    if jnp.shape(result) != x.shape:
        raise ValueError(
            f"orthogonalizer={orthogonalizer!r} returned shape {jnp.shape(result)} for "
            f"matrices of shape {x.shape}; it must keep the shape."
        )
    return jnp.asarray(result).astype(x.dtype)


def _one_by_one(
    function: Callable[[jax.Array], jax.Array], x: Float[Array, "*batch m n"]
) -> Float[Array, "*batch m n"]:
    """`function` of each matrix in turn: XLA's CPU runs batched products slower."""
    if x.ndim == 2:
        return function(x)
    stack = x.reshape((-1, *x.shape[-2:]))
    one = stack.shape[0] == 1
    result = function(stack[0])[None] if one else lax.map(function, stack)
    return result.reshape(x.shape)


def _bfloat16_or_float64(dtype: jnp.dtype) -> jnp.dtype:
    return dtype if dtype == jnp.float64 else jnp.dtype(jnp.bfloat16)
