"""Moments of other optimizers, laid out on a mesh like the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon._sharding import ShardingLike, read_layout


def keep_sharding(
    tx: optax.GradientTransformationExtraArgs, sharding: ShardingLike, name: str
) -> optax.GradientTransformationExtraArgs:
    """`tx`, its state laid out like the parameters where it has their shapes.

    Under jit the compiler would make each moment whole on every device.
    """

    def init(params: Any) -> Any:
        layout = read_layout(params, sharding, name)

        def shape_of(tree: Any) -> Any:  # of its leaves, and its structure
            return jax.tree.structure(tree), list(map(jnp.shape, jax.tree.leaves(tree)))

        def is_like_parameters(part: Any) -> bool:
            return bool(shape_of(part) == shape_of(params))

        def place(part: Any) -> Any:
            if not is_like_parameters(part):
                return part
            leaves, treedef = jax.tree.flatten(part)
            return jax.tree.unflatten(treedef, layout.constrain(leaves))

        return jax.tree.map(place, tx.init(params), is_leaf=is_like_parameters)

    return optax.GradientTransformationExtraArgs(init, tx.update)
