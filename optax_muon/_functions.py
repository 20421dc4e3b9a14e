"""What may be given as orthogonalizer: a configuration, or a user's own function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_muon._orthogonalizer import Form, Orthogonalizer

OrthogonalizerLike = Orthogonalizer | Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class UserFunction(Orthogonalizer):
    """A user's own function from [..., m, n] to [..., m, n]."""

    function: Callable[[jax.Array], jax.Array]

    @property
    def either_orientation(self) -> bool:
        return False  # it may tell fan-in from fan-out

    def form(
        self, shape: tuple[int, int], devices: int, dtype: np.dtype, platform: str
    ) -> Form:
        del shape, devices, dtype, platform
        return Form(getattr(self.function, "__name__", type(self.function).__name__))

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


@jax.jit  # so that calls outside jit compile once
def polar(
    x: Float[Array, "*batch m n"], orthogonalizer: Orthogonalizer
) -> Float[Array, "*batch m n"]:
    """The polar factors of matrices that are whole on this device, in x's dtype."""
    if x.size == 0:
        return x
    return orthogonalizer.polar_factor(x).astype(x.dtype)
