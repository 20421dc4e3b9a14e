"""optax's MuonDimensionNumbers as a rule of ours."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon._by_path import MISSING, entries_by_path
from optax_muon._matrix_axes import (
    MatrixAxes,
    Path,
    UndecidedLeafError,
    path_name,
)
from optax_muon._placement import whole_leaves
from optax_muon._rules import Rule
from optax_muon._sharding import ShardingLike

DimensionNumbersLike = Any
"""A tree (or prefix) of MuonDimensionNumbers | None, a function of the parameters that
gives one, or None: all leaves of rank 2."""


def rule_from_numbers(
    numbers: DimensionNumbersLike, tree: Any, sharding: ShardingLike
) -> Rule:
    """The rule that optax.contrib.muon follows for the leaves of `tree`.

    Args:
      numbers: its argument `muon_weight_dimension_numbers`.
      tree: the parameters, or gradients like them.
      sharding: as in `scale_by_muon`.

    Raises:
      ValueError: lists the leaves without an entry, or that their entry does not fit;
        entries for leaves that `tree` lacks.
      TypeError: entries of another type.
    """
    if numbers is None:
        return _by_rank
    layout, whole = whole_leaves(tree, sharding, "like_optax")
    if callable(numbers):
        # It sees arrays, as with optax, unless these are shards.
        uncut = list(map(jnp.shape, jax.tree.leaves(tree))) == list(layout.shapes)
        numbers = numbers(tree if uncut else whole)
    rule = _looked_up(numbers, whole)
    failures = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(whole)[0]:
        try:
            axes = rule(path, leaf)
            if axes is not None:
                axes.view(leaf.shape)
        except UndecidedLeafError as error:
            failures.append(f"  {path_name(path)}  {leaf.shape}: {error}")
    if failures:
        raise ValueError(
            "muon_weight_dimension_numbers does not fit these leaves:\n"
            + "\n".join(failures)
            + "\nGive each leaf MuonDimensionNumbers(reduction_axis, output_axis) with "
            "axes of its own, or None for AdamW."
        )
    return rule


def as_iterated(rule: Rule) -> Rule:
    """The rule for the iteration: optax takes leaves of rank 2 as they lie.

    Their numbers matter for the scale alone.
    """

    def iterated(path: Path, leaf: Any) -> MatrixAxes | None:
        axes = rule(path, leaf)
        return axes if axes is None or len(leaf.shape) > 2 else MatrixAxes(0, 1)

    return iterated


def _by_rank(path: Path, leaf: Any) -> MatrixAxes | None:
    del path
    return MatrixAxes(0, 1) if len(leaf.shape) == 2 else None


def _looked_up(numbers: Any, tree: Any) -> Rule:
    entry_of: Callable[[Path], Any] = entries_by_path(
        "muon_weight_dimension_numbers",
        "MuonDimensionNumbers",
        tree,
        numbers,
        lambda x: isinstance(x, optax.contrib.MuonDimensionNumbers),
    )

    def rule(path: Path, leaf: Any) -> MatrixAxes | None:
        entry = entry_of(path)
        if entry is MISSING:
            raise UndecidedLeafError("there is no entry for it")
        return None if entry is None else _axes(entry, len(leaf.shape))

    return rule


def _axes(numbers: optax.contrib.MuonDimensionNumbers, rank: int) -> MatrixAxes:
    if rank < 2:
        raise UndecidedLeafError(f"{numbers} takes leaves of rank 2 or more")

    def wrapped(axes: Any) -> tuple[int, ...]:
        each = axes if isinstance(axes, (tuple, list)) else (axes,)
        return tuple(int(axis) % rank for axis in each)  # as optax, past the rank too

    return MatrixAxes(wrapped(numbers.reduction_axis), wrapped(numbers.output_axis))
