"""Matrices to one transformation, all other leaves to another."""

import optax

from optax_muon import _checks
from optax_muon._alike import checked_against_parameters
from optax_muon._casts import float16_as_float32, in_parameters_dtype
from optax_muon._enclosing import enclose
from optax_muon._moments import keep_sharding
from optax_muon._placement import whole_leaves
from optax_muon._resolution import ADAM, MUON, MatrixAxesLike, labels
from optax_muon._sharding import ShardingLike


def route(
    matrices: optax.GradientTransformation,
    others: optax.GradientTransformation,
    *,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformationExtraArgs:
    """One transformation for the matrices of a model, another for everything else.

    What `muon` does with its two chains, for chains of your own.

    Args:
      matrices: for the leaves that `matrix_axes` gives axes to. Parts that have no
        `matrix_axes` or `sharding` of their own take these here.
      others: for the leaves that it sends to AdamW. float16 leaves are float32 to it,
        since squares underflow; its moments are laid out as `sharding` says, which
        its parts take too.
      matrix_axes, sharding: as in `muon`.

    Returns:
      The transformation. Updates have the parameters' dtype (without params in
      `update`, the gradients').

    Raises:
      ValueError: at init, one error that lists every leaf that no rule decides; at
        update, gradients unlike the parameters.

    >>> import jax.numpy as jnp
    >>> from optax_muon import scale_by_muon
    >>> tx = route(
    ...     optax.chain(scale_by_muon(), optax.scale_by_learning_rate(0.02)),
    ...     optax.adam(1e-3),
    ... )
    >>> params = {"kernel": jnp.eye(2, 3), "bias": jnp.ones(3)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    """
    _checks.check_part("matrices", matrices, "optax_muon.scale_by_muon()")
    _checks.check_part("others", others, "optax.adamw(1e-3)")
    return routed("route", matrices, others, matrix_axes, sharding)


def routed(
    name: str,
    matrices: optax.GradientTransformation,
    others: optax.GradientTransformation,
    matrix_axes: MatrixAxesLike,
    sharding: ShardingLike,
) -> optax.GradientTransformationExtraArgs:
    """`route` for a recipe of that name, which messages give."""
    wide = float16_as_float32(optax.with_extra_args_support(others))
    moments = keep_sharding(wide, sharding, name)
    parts = optax.partition(
        {
            MUON: enclose(matrices, matrix_axes, sharding),
            ADAM: enclose(moments, None, sharding),
        },
        lambda tree: labels(whole_leaves(tree, sharding, name)[1], matrix_axes),
    )
    return checked_against_parameters(name, in_parameters_dtype(parts))
