"""orthogonalize: the polar factors of matrices, also of sharded ones."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_muon import _checks
from optax_muon._functions import OrthogonalizerLike, as_orthogonalizer, polar
from optax_muon._layout import Layout
from optax_muon._matrix_axes import MatrixAxes
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._placement import PlacedView, placed_views
from optax_muon._polar_factors import polar_factors
from optax_muon._sharding import ShardingLike


def orthogonalize(
    x: Float[Array, "*batch m n"],
    orthogonalizer: OrthogonalizerLike = NewtonSchulz(),
    sharding: ShardingLike = None,
) -> Float[Array, "*batch m n"]:
    """The polar factor U V^T of each matrix X = U S V^T, exact or approximate.

    Args:
      x: matrices [..., m, n] of a real floating dtype.
      orthogonalizer: `NewtonSchulz(...)`, `Svd()`, `Qdwh()`, or a function of
        your own from [..., m, n] to [..., m, n].
      sharding: how x lies on a mesh, as for `muon`: shards then go to owners of whole
        matrices and back, with no collective inside the iteration. None reads the types
        on a mesh of Explicit axes; elsewhere it leaves x to the compiler.

    Returns:
      [..., m, n] in `x.dtype`, sharded as x. Zeros give zeros; NaN or Inf spoil only
      their matrix.

    Raises:
      TypeError: an orthogonalizer of another type; complex or integer input.
      ValueError: fewer than two axes; a function that returns another shape; a sharding
        that does not fit.

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
    layout, views = placed_views(x, MatrixAxes(-2, -1), sharding, "orthogonalize")
    if not layout.sizes:
        return polar(x, configuration)
    return _of_shards(x, layout, views, configuration)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _of_shards(
    x: jax.Array,
    layout: Layout,
    views: tuple[PlacedView, ...],
    orthogonalizer: Orthogonalizer,
) -> jax.Array:
    def on_one_device(
        shards: list[jax.Array], nothing: tuple[()]
    ) -> tuple[list[jax.Array]]:
        del nothing
        return (polar_factors(shards, views, orthogonalizer),)

    [[factors]] = layout.on_shards(on_one_device, [x], rest=())
    return factors
