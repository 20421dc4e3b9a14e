"""The state of `monitor`, how its records are kept as trees, and how they are read."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import optax

from optax_muon._matrix_axes import path_name
from optax_muon._measurements import METRICS, Watched
from optax_muon._serialization import register_state
from optax_muon._soap_state import SoapState
from optax_muon._trace import MuonState, the_only

Records = dict[str, Any]
"""For each group of metrics a tree like the parameters, with MaskedNode as none."""

Row = Mapping[str, jax.Array]
"""The groups of metrics of one leaf."""


@register_state
@chex.dataclass(frozen=True, mappable_dataclass=False)
class MonitorState:
    """State of `monitor`; `read_records` reads it.

    Attributes:
      count: int32 scalar, the number of updates so far.
      step: int32 scalar, the count at which the records were taken; 0 before the first.
      records: for each group of metrics a tree like the parameters, of arrays
        [*batch, metrics] or [*batch, parts, metrics] in at least float32; zeros before
        the first.
      previous: for the cosine, the update before the one to be measured, in bfloat16.
      inner: the state of the transformation that is monitored.
    """

    count: Any
    step: Any
    records: Any
    previous: Any
    inner: Any


def read_records(opt_state: Any) -> dict[str, jax.Array]:
    """The latest records of `monitor`, out of any nesting of optax states.

    Returns:
      "step", the number of the update that was measured (0: none yet, and all else is
      0), and for each leaf "path/metric": a scalar; for layers or experts in one array
      [*batch], in the order of the leaf's batch axes; for a leaf with parts
      [*batch, parts].

    Raises:
      ValueError: there is no `MonitorState`, or more than one.

    >>> import jax.numpy as jnp
    >>> from optax_muon import monitor, scale_by_muon
    >>> tx = optax.chain(monitor(scale_by_muon(), metrics=["cosine"]))
    >>> read_records(tx.init({"kernel": jnp.ones((2, 3))})).keys()
    dict_keys(['step', 'kernel/update_cosine'])
    """
    remedy = "wrap the optimizer in optax_muon.monitor, or pass the part that holds it"
    state = the_only(MonitorState, opt_state, remedy)
    # Indexed, as values are, since NNX wraps each array of a state into a variable.
    return {"step": state.step[...]} | {
        f"{path}/{metric}": values[..., place]
        for group, metrics in METRICS.items()
        for path, values in named_leaves(state.records.get(group))
        for place, metric in enumerate(metrics)
    }


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of each leaf of a tree."""
    return [
        (path_name(path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def momenta(tree: Any, opt_state: Any) -> list[Any]:
    """For each leaf of a tree the momentum that a state keeps of it, or None.

    Raises:
      ValueError: it keeps several of one leaf.
    """
    kinds = (MuonState, SoapState)
    parts = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kinds))
    kept = [part.momentum for part in parts if isinstance(part, kinds)]
    named = [each for momentum in kept for each in named_leaves(momentum)]
    found = dict(named)
    if len(found) < len(named):
        names = [name for name, _ in named]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"monitor: inner's state keeps more than one momentum of {twice}; monitor "
            "the parts of the chain that keep them one by one."
        )
    return [found.get(name) for name, _ in named_leaves(tree)]


def as_trees(treedef: Any, rows: Sequence[Row], groups: Sequence[str]) -> Records:
    """Rows, one for each leaf of `treedef`, as a tree for each group."""
    hole = optax.MaskedNode()
    return {
        name: jax.tree.unflatten(treedef, [row.get(name, hole) for row in rows])
        for name in groups
    }


def as_trees_like(records: Records, rows: Sequence[Row]) -> Records:
    """Rows as trees with the structure and dtypes of `records`."""
    new = {}
    for name, tree in records.items():
        old, treedef = jax.tree.flatten(tree)
        values = [row[name] for row in rows if name in row]
        cast = [x.astype(y.dtype) for x, y in zip(values, old, strict=True)]
        new[name] = jax.tree.unflatten(treedef, cast)
    return new


def rows_of(records: Records, watched: Sequence[Watched]) -> list[Row]:
    """The inverse of `as_trees`, for what is watched of each leaf."""
    columns = {name: iter(jax.tree.leaves(tree)) for name, tree in records.items()}
    return [
        {name: next(columns[name]) for name in columns if name in one.groups}
        for one in watched
    ]
