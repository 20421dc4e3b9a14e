"""Polar factors of matrices, also of sharded ones: a function, and a part of chains."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optax_muon import _checks
from optax_muon._functions import OrthogonalizerLike, as_orthogonalizer, polar
from optax_muon._layout import Layout
from optax_muon._matrix_axes import MatrixAxes
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._placement import PlacedView, placed_views
from optax_muon._polar_factors import polar_factors
from optax_muon._resolution import MatrixAxesLike
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
    [factors] = _polar_factors(
        [x], layout=layout, views=views, orthogonalizer=configuration
    )
    return factors


def orthogonalize_updates(
    orthogonalizer: OrthogonalizerLike = NewtonSchulz(),
    *,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Replace each matrix by its polar factor: the second stage of `scale_by_muon`.

    For chains with a part between `accumulate_momentum` and this.

    Args:
      orthogonalizer, matrix_axes, sharding: as in `scale_by_muon`.

    Returns:
      A transformation without state; updates keep shape and dtype.

    Raises:
      ValueError, TypeError: as `scale_by_muon`.

    >>> from optax_muon import Svd
    >>> tx = orthogonalize_updates(Svd())
    >>> x = jnp.array([[3.0, 0.0], [0.0, -0.5]])
    >>> print(tx.update(x, tx.init(x))[0])
    [[ 1.  0.]
     [ 0. -1.]]
    """
    configuration = as_orthogonalizer(orthogonalizer)

    def placed(tree: Any) -> tuple[Layout, tuple[PlacedView, ...]]:
        return placed_views(tree, matrix_axes, sharding, "orthogonalize_updates")

    def init(params: Any) -> Any:
        placed(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        layout, views = placed(updates)
        leaves, treedef = jax.tree.flatten(updates)
        factors = _polar_factors(
            leaves, layout=layout, views=views, orthogonalizer=configuration
        )
        return jax.tree.unflatten(treedef, factors), state

    return optax.GradientTransformation(init, update)


@partial(jax.jit, static_argnames=("layout", "views"))
def _polar_factors(
    leaves: list[jax.Array],
    *,
    layout: Layout,
    views: tuple[PlacedView, ...],
    orthogonalizer: Orthogonalizer,
) -> list[jax.Array]:
    def on_one_device(
        shards: list[jax.Array], orthogonalizer: Orthogonalizer
    ) -> tuple[list[jax.Array]]:
        return (polar_factors(shards, views, orthogonalizer),)

    [factors] = layout.on_shards(on_one_device, leaves, rest=orthogonalizer)
    return factors
