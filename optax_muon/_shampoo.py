"""Shampoo, with and without accumulation: where Muon's polar factor comes from."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._casts import widen
from optax_muon._exact import exact_matmul, inverse_root
from optax_muon._matrix_axes import MatrixView
from optax_muon._newton_schulz import normalize
from optax_muon._resolution import (
    MatrixAxesLike,
    check_views_without_parts,
    matrix_routes,
)
from optax_muon._serialization import register_state
from optax_muon._stacking import as_matrices, from_matrices


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
    *, accumulate: bool = True, matrix_axes: MatrixAxesLike = None
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

    Returns:
      A transformation; updates keep the gradients' sign, shape and dtype.

    Raises:
      ValueError: leaves that are no matrices, or several side by side; gradients
        unlike the state.

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

    def stacks(tree: Any) -> tuple[list[jax.Array], tuple[MatrixView, ...]]:
        decided = matrix_routes(tree, matrix_axes, "scale_by_shampoo")
        views = tuple(route.view for route in decided)
        check_views_without_parts(tree, views, "scale_by_shampoo")
        leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
        return [as_matrices(x, v) for x, v in zip(leaves, views, strict=True)], views

    def init(params: Any) -> Any:
        zeros, _ = stacks(optax.tree.zeros_like(params))
        if not accumulate:
            return optax.EmptyState()
        treedef = jax.tree.structure(params)
        return ShampooState(
            left=jax.tree.unflatten(treedef, [_gram(g) for g in zeros]),
            right=jax.tree.unflatten(treedef, [_gram(g.mT) for g in zeros]),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        gradients, views = stacks(updates)
        if not accumulate:  # the step does not depend on the gradient's magnitude
            gradients = [
                normalize(g).astype(g.dtype) if g.size else g for g in gradients
            ]
        left, right = [_gram(g) for g in gradients], [_gram(g.mT) for g in gradients]
        if accumulate:
            check_alike(
                "scale_by_shampoo", updates, state.left, [x.shape for x in left]
            )
            check_alike(
                "scale_by_shampoo", updates, state.right, [x.shape for x in right]
            )
            left = _add(jax.tree.leaves(state.left), left)
            right = _add(jax.tree.leaves(state.right), right)
            treedef = jax.tree.structure(state.left)
            state = ShampooState(
                left=jax.tree.unflatten(treedef, left),
                right=jax.tree.unflatten(treedef, right),
            )
        steps = map(_precondition, gradients, left, right)
        leaves = [from_matrices(x, v) for x, v in zip(steps, views, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(init, update)


def _gram(x: jax.Array) -> jax.Array:
    """X X^T of each matrix, at least in float32."""
    return exact_matmul(widen(x), widen(x).mT)


def _add(stored: list[Any], new: list[jax.Array]) -> list[jax.Array]:
    return [widen(x) + y for x, y in zip(stored, new, strict=True)]


def _precondition(g: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """L^(-1/4) G R^(-1/4) for stacks; empty matrices have no spectrum."""
    if g.size == 0:
        return g
    step = exact_matmul(inverse_root(left, 4), widen(g))
    return exact_matmul(step, inverse_root(right, 4)).astype(g.dtype)
