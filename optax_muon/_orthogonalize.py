"""orthogonalize: the polar factor of matrices, by a configuration or a function."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_muon import _checks
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._orthogonalizers import NewtonSchulz

OrthogonalizerLike = Orthogonalizer | Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class UserFunction(Orthogonalizer):
    """A user's own function from [..., m, n] to [..., m, n]."""

    either_orientation: ClassVar[bool] = False  # it may tell fan-in from fan-out

    function: Callable[[jax.Array], jax.Array]

    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        result = self.function(x)
        if jnp.shape(result) != x.shape:
            raise ValueError(
                f"orthogonalizer={self.function!r} returned shape {jnp.shape(result)} "
                f"for matrices of shape {x.shape}; it must keep the shape."
            )
        return jnp.asarray(result)


def as_orthogonalizer(orthogonalizer: Any) -> Orthogonalizer:
    """The configuration itself, or a function as one; all else raises."""
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
    if isinstance(orthogonalizer, Orthogonalizer):
        return orthogonalizer
    return UserFunction(orthogonalizer)


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

    >>> from optax_muon import Svd
    >>> x = jnp.array([[3.0, 0.0], [0.0, -0.5]])
    >>> print(orthogonalize(x, Svd()))
    [[ 1.  0.]
     [ 0. -1.]]
    """
    configuration = as_orthogonalizer(orthogonalizer)
    x = jnp.asarray(x)
    if x.dtype.name not in _checks.FLOATS:
        raise TypeError(
            f"orthogonalize takes real floating matrices, got dtype {x.dtype}; split "
            "complex matrices into parts, or cast others to one of "
            f"{', '.join(_checks.FLOATS)}, before the call."
        )
    if x.ndim < 2:
        raise ValueError(
            f"orthogonalize takes matrices [..., m, n], got shape {x.shape}; reshape a "
            "vector to one column first."
        )
    if x.size == 0:
        return x
    return _polar(x, configuration)


@partial(jax.jit, static_argnums=1)  # so that calls outside jit compile once
def _polar(
    x: Float[Array, "*batch m n"], orthogonalizer: Orthogonalizer
) -> Float[Array, "*batch m n"]:
    return orthogonalizer.polar_factor(x).astype(x.dtype)
