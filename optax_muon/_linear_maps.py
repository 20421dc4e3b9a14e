"""The matrices of a leaf as linear maps from their shorter side, wherever they lie."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from optax_muon._casts import at_least_float32
from optax_muon._norms import nonzero
from optax_muon._statistics import Matrices


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A = X / (X's RMS singular value), or its transpose, for each matrix X of a leaf.

    Vectors have the leaf's axes, with length 1 along those of the other side (but for
    parts, along which they are repeated); so nothing is moved, however X is sharded.

    Attributes:
      x: the leaf, not empty.
      matrices: of it.
      rms: their RMS singular values, 1 for zeros, of length 1 along a matrix's axes.
      from_inputs: whether A's domain is the inputs' side.
    """

    x: jax.Array
    matrices: Matrices
    rms: jax.Array
    from_inputs: bool

    def apply(self, v: jax.Array) -> jax.Array:
        """A v."""
        return self._sum_over_domain(self._times(v))

    def adjoint(self, u: jax.Array) -> jax.Array:
        """A^T u."""
        return self._sum_over_range(self._times(u))

    def domain_norm(self, v: jax.Array) -> jax.Array:
        """||v|| of vectors near 1."""
        return jnp.sqrt(self._sum_over_domain(v**2))

    def range_norm(self, u: jax.Array) -> jax.Array:
        """||u|| of vectors near 1."""
        return jnp.sqrt(self._sum_over_range(u**2))

    def zeros(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A zero of the domain, of the range, and of their norms, with their types."""
        zeros = jnp.zeros_like(self.x, dtype=self.rms.dtype)
        return (
            self._sum_over_range(zeros),
            self._sum_over_domain(zeros),
            self.matrices.over_all(zeros),
        )

    def signs(self, seed: int) -> jax.Array:
        """Random signs over the domain, the same for all matrices."""
        view = self.matrices.view
        axes = view.fan_in_axes if self.from_inputs else view.fan_out_axes
        length = view.fans[0] if self.from_inputs else view.fans[1]
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), length)
        return self.zeros()[0] + self.matrices.along(axes, signs.astype(self.rms.dtype))

    def _times(self, vector: jax.Array) -> jax.Array:
        # The vector is scaled, for X over its RMS would be a second X in memory.
        return self.x.astype(self.rms.dtype) * (vector / self.rms)

    def _sum_over_domain(self, x: jax.Array) -> jax.Array:
        matrices = self.matrices
        return matrices.over_inputs(x) if self.from_inputs else matrices.over_outputs(x)

    def _sum_over_range(self, x: jax.Array) -> jax.Array:
        matrices = self.matrices
        return matrices.over_outputs(x) if self.from_inputs else matrices.over_inputs(x)


def linear_maps(x: jax.Array, matrices: Matrices) -> dict[bool, LinearMap]:
    """The maps of a leaf, by `from_inputs`: from the shorter side, with a small A^T A.

    Both if the leaf holds parts of both kinds: `of_shorter_sides` picks from results.
    """
    wide = x.astype(at_least_float32(x.dtype))
    roots = matrices.given(lambda fan_in, fan_out: min(fan_in, fan_out) ** 0.5)
    rms = nonzero((matrices.norm(wide) / roots).astype(wide.dtype))
    sides = dict.fromkeys(
        fan_in <= fan_out for fan_in, fan_out in matrices.view.fans_of_parts
    )
    return {side: LinearMap(x, matrices, rms, side) for side in sides}


def of_shorter_sides(
    results: Mapping[bool, jax.Array], matrices: Matrices
) -> jax.Array:
    """Of results of the maps, [*batch] or [*batch, parts], each matrix's own."""
    if len(results) == 1:
        return next(iter(results.values()))
    is_inputs = per_matrix(matrices, lambda fan_in, fan_out: fan_in <= fan_out)
    return jnp.where(is_inputs, results[True], results[False])


def per_matrix(matrices: Matrices, function: Callable[[int, int], float]) -> np.ndarray:
    """`function(fan_in, fan_out)` as a scalar, or [parts] where there are some."""
    values = [function(*fans) for fans in matrices.view.fans_of_parts]
    return np.asarray(values if matrices.view.parts else values[0])
