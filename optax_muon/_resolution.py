"""From a rule or a tree of axes to a decision for every leaf, or one error for all."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_muon import _checks
from optax_muon._by_path import MISSING, entries_by_path
from optax_muon._combinators import unmet
from optax_muon._enclosing import enclosing_matrix_axes
from optax_muon._matrix_axes import (
    MatrixAxes,
    MatrixView,
    Path,
    UndecidedLeafError,
    path_name,
)
from optax_muon._rules import Rule, flax_matrix_axes

MatrixAxesLike = Rule | MatrixAxes | Any | None
"""A rule, or a tree (or tree prefix) of MatrixAxes | None. None, in a part, is what the
recipe or `route` around it has; without that, `flax_matrix_axes`."""

MUON, ADAM = "muon", "adamw"


@dataclasses.dataclass(frozen=True)
class Route:
    """The decision for one leaf: `view` is how Muon sees it, None sends it to AdamW."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    view: MatrixView | None


def routes(tree: Any, matrix_axes: MatrixAxesLike = None) -> list[Route]:
    """The decision for each leaf of `tree`, in the order of its leaves.

    Raises:
      ValueError: lists every leaf that is undecided, or that no optimizer can take,
        with path, shape, reason and remedy; or names patterns of `stacked` and `fused`
        that match no leaf.
      TypeError: `matrix_axes` of another type.
    """
    rule = as_rule(tree, enclosing_matrix_axes(matrix_axes))
    found, failures = [], []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        try:
            view = _view(rule, path, jax.ShapeDtypeStruct(shape, dtype))
            found.append(Route(name, shape, dtype, view))
        except UndecidedLeafError as error:
            failures.append(f"  {name}  {shape} {dtype}: {error}")
    no_match = unmet("matrix_axes", rule, tree)
    if failures:
        raise ValueError(_undecided(failures, found) + no_match)
    if no_match:
        raise ValueError(no_match.strip())
    return found


def labels(tree: Any, matrix_axes: MatrixAxesLike = None) -> Any:
    """A tree of "muon" and "adamw", as `optax.partition` takes it."""
    decided = routes(tree, matrix_axes)
    return jax.tree.unflatten(
        jax.tree.structure(tree), [ADAM if r.view is None else MUON for r in decided]
    )


@dataclasses.dataclass(frozen=True)
class MatrixRoute(Route):
    """The decision for a leaf that Muon takes."""

    view: MatrixView


def matrix_routes(
    tree: Any, matrix_axes: MatrixAxesLike, transformation: str
) -> list[MatrixRoute]:
    """The decision for each leaf, for transformations that can only take matrices.

    Raises:
      ValueError: as `routes`; or lists the leaves that are no matrices.
    """
    decided = routes(tree, matrix_axes)
    vectors = [f"  {r.path}  {r.shape}" for r in decided if r.view is None]
    if vectors:
        raise ValueError(
            f"{transformation} takes matrices, but matrix_axes sends these leaves to "
            "AdamW:\n" + "\n".join(vectors) + "\nUse optax_muon.muon, which does that; "
            "or optax.partition / optax.masked to keep them out of "
            f"{transformation}; or name their axes in matrix_axes, for example "
            "MatrixAxes(fan_in=0, fan_out=()) for a vector as one column."
        )
    return [
        MatrixRoute(r.path, r.shape, r.dtype, r.view)
        for r in decided
        if r.view is not None
    ]


def check_views_without_parts(
    tree: Any, views: Sequence[MatrixView], transformation: str
) -> None:
    """Raise if leaves hold several matrices side by side, and list those."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    parted = [
        f"  {path_name(path)}  {view.shape}: {view.parts}"
        for (path, _), view in zip(flat, views, strict=True)
        if view.parts
    ]
    if parted:
        raise ValueError(
            f"{transformation} cannot take parts of leaves apart, but matrix_axes "
            "declares parts of these:\n" + "\n".join(parted) + "\nKeep the parts as "
            "leaves of their own, or declare each leaf as one matrix."
        )


def _view(rule: Rule, path: Path, leaf: jax.ShapeDtypeStruct) -> MatrixView | None:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise UndecidedLeafError(
            "complex leaves are not supported; keep real and imaginary parts apart"
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise UndecidedLeafError(
            "no floating dtype, so it has no gradient; keep it out of the parameters "
            "(nnx.state(model, nnx.Param) does, of an NNX model), or mask it with "
            "optax.masked"
        )
    if leaf.dtype.name not in _checks.FLOATS:
        raise UndecidedLeafError(
            "nothing can be computed in this dtype; train it as one of "
            f"{', '.join(_checks.FLOATS)}"
        )
    axes = rule(path, leaf)
    if axes is None:
        return None
    if type(axes) is not MatrixAxes:  # a NormBall says more than this would heed
        raise TypeError(
            f"matrix_axes gave {axes!r} for {path_name(path)!r}; a rule "
            "must return a MatrixAxes, or None for AdamW."
        )
    return axes.view(leaf.shape)


def _undecided(failures: list[str], decided: list[Route]) -> str:
    # Stacked layers have such leaves too: a stacked 2-D `query` looks like a 3-D one.
    by_name = [
        f"  {r.path}  {r.shape}: as {r.view.matrices[0]} x {r.view.fans}"
        for r in decided
        if r.view is not None and len(r.view.fan_in_axes + r.view.fan_out_axes) > 2
    ]
    if by_name:
        failures = [*failures, "These were decided; are they what they seem?", *by_name]
    return (
        "optax_muon cannot decide how to optimize these leaves:\n"
        + "\n".join(failures)
        + "\nWhere the dtype is no reason, pass matrix_axes=, either a rule (path, "
        "leaf) -> MatrixAxes | None (None: AdamW) that decides them, such as "
        "optax_muon.stacked('layers') for layers "
        "stacked by nn.scan, nnx.scan or vmap; or a tree of MatrixAxes | None like the "
        "parameters, such as MatrixAxes(fan_in=0, fan_out=(1, 2)) for a projection to "
        "(heads, head_dim), which optax_muon.axes_from_nnx(model) and "
        "optax_muon.axes_from_linen(module, *inputs) read off Flax models. "
        "optax_muon.plan(params, matrix_axes) shows the outcome."
    )


def as_rule(
    tree: Any,
    given: Any,
    argument: str = "matrix_axes",
    kind: type[MatrixAxes] = MatrixAxes,
) -> Rule:
    """The rule that a user's argument, a rule or a tree of `kind` or None, stands for.

    Args:
      tree: the parameters.
      given: the argument; None stands for `flax_matrix_axes`.
      argument: its name, for messages.
      kind: what its leaves are.
    """
    if given is None:
        return flax_matrix_axes
    if isinstance(given, type):
        raise TypeError(
            f"{argument}={given!r} is a class; pass an instance, {kind.__name__}()."
        )
    # Modules of Equinox can be called, and are trees: of axes, if they hold any.
    if callable(given) and not any(type(x) is kind for x in jax.tree.leaves(given)):
        return given
    entry_of = entries_by_path(
        argument, kind.__name__, tree, given, lambda x: isinstance(x, kind)
    )

    def rule(path: Path, leaf: Any) -> MatrixAxes | None:
        del leaf
        entry = entry_of(path)
        if entry is MISSING:
            raise UndecidedLeafError(f"the tree {argument} has no entry for it")
        return entry

    return rule
