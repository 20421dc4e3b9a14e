"""Steps as long as the gradient's dual norm is large: steepest descent, not its LMO."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._casts import at_least_float32
from optax_muon._resolution import MatrixAxesLike
from optax_muon._sharding import ShardingLike
from optax_muon._statistics import matrices_of


def scale_by_dual_norm(
    inner: optax.GradientTransformation,
    *,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiply what `inner` makes of each matrix by their inner product.

    With D a matrix and O what `inner` turns it into:

      O <- <D, O> O

    Around `orthogonalize_updates`, <D, polar(D)> is the nuclear norm of D, the dual of
    the spectral norm, and the result is the steepest descent under the spectral norm
    (Bernstein, Newhouse, 2409.20325), where Muon alone keeps only its direction;
    PolarGrad (arXiv 2505.21799) is this. With inexact polar factors it is sum of
    s p(s). Steps are then as large as gradients are: clip them, and tune the learning
    rate anew; "ema" and "heavy_ball" no longer agree.

    Args:
      inner: such as `orthogonalize_updates(...)`, or a chain of it and other parts.
      matrix_axes, sharding: as in `normalize_neurons`. Each matrix has a norm of its
        own, however many a leaf holds.

    Returns:
      A transformation with the state of `inner`; updates have its shape and dtype.

    Raises:
      TypeError: `inner` is no transformation. ValueError: leaves that are no matrices.

    >>> from optax_muon import Svd, orthogonalize_updates
    >>> tx = scale_by_dual_norm(orthogonalize_updates(Svd()))
    >>> x = jnp.array([[3.0, 0.0], [0.0, -0.5]])
    >>> print(tx.update(x, tx.init(x))[0])
    [[ 3.5  0. ]
     [ 0.  -3.5]]
    """
    _checks.check_part("inner", inner, "optax_muon.orthogonalize_updates()")
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        matrices_of(params, matrix_axes, sharding, "scale_by_dual_norm")
        return inner.init(params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        _, every = matrices_of(updates, matrix_axes, sharding, "scale_by_dual_norm")
        steps, state = inner.update(updates, state, params, **extra_args)
        leaves, treedef = jax.tree.flatten(steps)
        scaled = []
        for before, after, matrices in zip(
            jax.tree.leaves(updates), leaves, every, strict=True
        ):
            wide = at_least_float32(after.dtype)
            x, o = jnp.asarray(before, wide), after.astype(wide)
            scaled.append((matrices.over_all(x * o) * o).astype(after.dtype))
        return jax.tree.unflatten(treedef, scaled), state

    return optax.GradientTransformationExtraArgs(init, update)
