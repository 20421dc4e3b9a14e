"""The state of scale_by_soap, and how it is taken apart into leaves."""

from collections.abc import Sequence
from typing import Any

import chex
import jax

from optax_muon._alike import check_alike
from optax_muon._eigenbasis import Statistics
from optax_muon._matrix_axes import MatrixView
from optax_muon._serialization import register_state
from optax_muon._whole import whole_zeros

Shapes = dict[str, tuple[int, ...]]
"""Of a leaf's `Statistics`, by their names; () for what is not kept."""


@register_state
@chex.dataclass(frozen=True, mappable_dataclass=False)
class SoapState:
    """State of `scale_by_soap`.

    All but the first two are trees like the parameters of matrices in at least float32.
    Where a side is not preconditioned, their leaves are the scalar 0.

    Attributes:
      count: int32 scalar, the number of updates so far; schedules read it.
      momentum: the trace, a tree like the parameters.
      second_moment: V [batch, fan_in, fan_out], in the basis.
      left, right: means of G G^T [batch, fan_in, fan_in], and of G^T G
        [batch, fan_out, fan_out].
      left_basis, right_basis: Q_L and Q_R, of the same shapes; zeros before the first
        update.
    """

    count: Any
    momentum: Any
    second_moment: Any
    left: Any
    right: Any
    left_basis: Any
    right_basis: Any


def shapes_of(view: MatrixView, max_dim: int, one_sided: bool) -> Shapes:
    """What is kept of a leaf; empty matrices have no statistics."""
    batch, fan_in, fan_out = view.matrices
    longest = min(max_dim, fan_in, fan_out) if one_sided else max_dim
    left = (batch, fan_in, fan_in) if view.size and fan_in <= longest else ()
    right = (batch, fan_out, fan_out) if view.size and fan_out <= longest else ()
    return {
        "second_moment": view.matrices if left or right else (),
        "left": left,
        "right": right,
        "left_basis": left,
        "right_basis": right,
    }


def zeros(leaf: Any, shapes: Shapes) -> Statistics:
    """Those of a leaf at first."""
    return Statistics(**{k: whole_zeros(leaf, s) for k, s in shapes.items()})


def as_trees(treedef: Any, statistics: Sequence[Statistics]) -> dict[str, Any]:
    """The fields of `SoapState` that hold the statistics of all leaves."""
    return {
        field: jax.tree.unflatten(treedef, [getattr(one, field) for one in statistics])
        for field in Statistics._fields
    }


def as_list(
    state: SoapState, updates: Any, shapes: Sequence[Shapes]
) -> list[Statistics]:
    """The inverse of `as_trees`, for gradients that need statistics of `shapes`.

    Raises:
      ValueError: the state is not for such gradients.
    """
    trees = {field: getattr(state, field) for field in Statistics._fields}
    for field, tree in trees.items():
        check_alike("scale_by_soap", updates, tree, [each[field] for each in shapes])
    leaves = map(jax.tree.leaves, trees.values())
    return [Statistics(*one) for one in zip(*leaves, strict=True)]
