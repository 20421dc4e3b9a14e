"""Shampoo, with and without accumulation: where Muon's polar factor comes from."""

from functools import partial
from typing import Any

import chex
import jax
import optax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._casts import widen
from optax_muon._exact import exact_matmul, inverse_root
from optax_muon._layout import Layout
from optax_muon._matrix_axes import MatrixView
from optax_muon._newton_schulz import normalize
from optax_muon._resolution import MatrixAxesLike, check_views_without_parts
from optax_muon._serialization import register_state
from optax_muon._sharding import ShardingLike
from optax_muon._stacking import as_matrices, from_matrices
from optax_muon._whole import on_automatic_axes, whole_views, whole_zeros

Sums = tuple[jax.Array, jax.Array]
"""L and R of a leaf's matrices."""


@register_state
@chex.dataclass(frozen=True, mappable_dataclass=False)
class ShampooState:
    """State of `scale_by_shampoo` with accumulation.

    Attributes:
      left, right: a tree like the parameters of sums [batch, fan_in, fan_in] of G G^T
        and [batch, fan_out, fan_out] of G^T G, at least float32.
    """

    left: Any
    right: Any


def scale_by_shampoo(
    *,
    accumulate: bool = True,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Shampoo: L^(-1/4) G R^(-1/4) for every matrix G [fan_in, fan_out].

      L <- L + G G^T,  R <- R + G^T G      (accumulate=True, from L = R = 0)
      L = G G^T,       R = G^T G           (accumulate=False)

    Without accumulation the update is the polar factor U_r V_r^T of G: exact Muon with
    no momentum. Roots are taken on the range of L and R (Moore-Penrose), so that no
    epsilon blurs the identity; eigenvalues below rounding count as zero, which in
    float32 drops singular values below about 1e-3 of the largest. Accumulated squares
    must fit float32: where they overflow, the update is NaN.

    Args:
      accumulate: whether statistics add up over the steps.
      matrix_axes: as in `scale_by_muon`.
      sharding: as in `scale_by_soap`: updates lie as the gradients do, products of
        sharded matrices are left to the compiler, and L and R are whole at first.

    Returns:
      A transformation; updates keep the gradients' sign, shape and dtype.

    Raises:
      ValueError: leaves that are no matrices, or several side by side, or inside a
        `jax.shard_map` parts of matrices; gradients unlike the state.

    >>> import jax.numpy as jnp
    >>> tx = scale_by_shampoo(accumulate=False)
    >>> g = jnp.array([[3.0, 0.0], [0.0, -0.5]])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [[ 1.  0.]
     [ 0. -1.]]

    References:
      Gupta, Koren, Singer, Shampoo, arXiv 1802.09568, 2018.
      Bernstein, Newhouse, Old Optimizer, New Norm: An Anthology, arXiv 2409.20325.
    """
    _checks.check_bool("accumulate", accumulate)

    def viewed(tree: Any) -> tuple[Layout, tuple[MatrixView, ...]]:
        layout, views = whole_views(tree, matrix_axes, sharding, "scale_by_shampoo")
        check_views_without_parts(tree, views, "scale_by_shampoo")
        return layout, views

    def init(params: Any) -> Any:
        _, views = viewed(params)
        if not accumulate:
            return optax.EmptyState()
        leaves, treedef = jax.tree.flatten(params)
        pairs = [
            [whole_zeros(leaf, shape) for shape in _shapes(view)]
            for leaf, view in zip(leaves, views, strict=True)
        ]
        return _state(treedef, pairs)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        layout, views = viewed(updates)
        leaves, treedef = jax.tree.flatten(updates)
        sums: list[Sums] = []
        if accumulate:
            shapes = list(map(_shapes, views))
            for side, tree in enumerate((state.left, state.right)):
                needed = [pair[side] for pair in shapes]
                check_alike("scale_by_shampoo", updates, tree, needed)
            lefts, rights = jax.tree.leaves(state.left), jax.tree.leaves(state.right)
            sums = list(zip(lefts, rights, strict=True))
        steps, sums = _step(leaves, sums, layout=layout, views=views)
        if accumulate:
            state = _state(jax.tree.structure(state.left), sums)
        return jax.tree.unflatten(treedef, steps), state

    return optax.GradientTransformation(init, update)


def _shapes(view: MatrixView) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of L and R."""
    batch, fan_in, fan_out = view.matrices
    return (batch, fan_in, fan_in), (batch, fan_out, fan_out)


def _state(treedef: Any, sums: Any) -> ShampooState:
    left, right = ([pair[side] for pair in sums] for side in (0, 1))
    return ShampooState(
        left=jax.tree.unflatten(treedef, left), right=jax.tree.unflatten(treedef, right)
    )


# Compiled at module level, so that optimizers of one configuration share a program.
@partial(jax.jit, static_argnames=("layout", "views"))
def _step(
    gradients: list[jax.Array],
    sums: list[Sums],
    *,
    layout: Layout,
    views: tuple[MatrixView, ...],
) -> tuple[list[jax.Array], list[Sums]]:
    """The step and the new sums of every leaf; without sums, those of G alone count."""
    steps, sums = on_automatic_axes(
        partial(_on_matrices, views=views), layout, (gradients, sums), gradients, sums
    )
    return layout.constrain(steps), sums


def _on_matrices(
    gradients: list[jax.Array], sums: list[Sums], *, views: tuple[MatrixView, ...]
) -> tuple[list[jax.Array], list[Sums]]:
    matrices = [as_matrices(g, v) for g, v in zip(gradients, views, strict=True)]
    if sums:
        new = [
            (widen(left) + _gram(g), widen(right) + _gram(g.mT))
            for g, (left, right) in zip(matrices, sums, strict=True)
        ]
    else:  # the step does not depend on the gradient's magnitude
        matrices = [normalize(g).astype(g.dtype) if g.size else g for g in matrices]
        new = [(_gram(g), _gram(g.mT)) for g in matrices]
    steps = [
        from_matrices(_precondition(g, *pair), v)
        for g, pair, v in zip(matrices, new, views, strict=True)
    ]
    return steps, new if sums else []


def _gram(x: jax.Array) -> jax.Array:
    """X X^T of each matrix, at least in float32."""
    return exact_matmul(widen(x), widen(x).mT)


def _precondition(g: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """L^(-1/4) G R^(-1/4) for stacks; empty matrices have no spectrum."""
    if g.size == 0:
        return g
    step = exact_matmul(inverse_root(left, 4), widen(g))
    return exact_matmul(step, inverse_root(right, 4)).astype(g.dtype)
