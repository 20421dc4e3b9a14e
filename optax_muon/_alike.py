"""Gradients must be like what an optimizer was made for, leaf by leaf and in order."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon._matrix_axes import path_name


def check_alike(
    transformation: str,
    updates: Any,
    expected: Any,
    shapes: Sequence[tuple[int, ...]] | None = None,
) -> None:
    """Raise unless `updates` have the names, order and shapes of the tree `expected`.

    Args:
      transformation: whose update this is, for the message.
      updates: the gradients.
      expected: the parameters, or a part of the state with a leaf for each of them.
      shapes: what each gradient's leaf of `expected` must have; None: its own shape.
    """
    got, wanted = _names_and_shapes(updates), _names_and_shapes(expected)
    if shapes is not None:
        got = [(name, shape) for (name, _), shape in zip(got, shapes, strict=True)]
    if got == wanted:
        return
    ours, theirs = dict(got), dict(wanted)
    names = sorted(ours.keys() ^ theirs.keys()) or [
        f"{name}: {ours[name]} against {theirs[name]}"
        for name in ours
        if ours[name] != theirs[name]
    ]
    raise ValueError(
        f"{transformation} got gradients unlike the parameters it was made for. They "
        f"differ in {', '.join(names) or 'the order of their leaves'}. Call init again "
        "with the parameters that are trained now, or restore the state that fits them."
    )


def checked_against_parameters(
    name: str, tx: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """`tx`, refusing gradients unlike the parameters, if `update` is given these."""

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if params is not None:
            check_alike(name, updates, params)
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def checked_against_moments(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`tx`, a kind of Adam, refusing gradients unlike its first moment."""

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        check_alike("AdamW", updates, optax.tree.get(state, "mu"))
        return inner.update(updates, state, params, **extra_args)

    inner = optax.with_extra_args_support(tx)
    return optax.GradientTransformationExtraArgs(tx.init, update)


def _names_and_shapes(tree: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (path_name(path), jnp.shape(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
