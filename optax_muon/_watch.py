"""What `monitor` records of each leaf, and what it needs to be given for that."""

from collections.abc import Collection, Sequence
from typing import Any

import jax

from optax_muon import _checks
from optax_muon._measurements import (
    METRICS,
    MOMENTUM,
    SIZE,
    WEIGHT,
    Watched,
)
from optax_muon._records import MonitorState, named_leaves


def metrics_of(metrics: Collection[str] | None) -> tuple[str, ...]:
    """The groups asked for, in the order of `METRICS`."""
    if metrics is None:
        return tuple(METRICS)
    if isinstance(metrics, str) or not isinstance(metrics, Collection):
        raise TypeError(
            f"metrics={metrics!r} must be a collection of names, such as "
            '("size", "band"), or None for all.'
        )
    for name in metrics:
        _checks.check_choice("metrics", name, METRICS)
    if not metrics:
        raise ValueError(
            f"metrics={metrics!r} names nothing to record; pass names out of "
            f"{', '.join(METRICS)}, None for all, or every=None for no monitoring."
        )
    return tuple(name for name in METRICS if name in metrics)


def possible(
    asked: tuple[str, ...], size: int, is_matrix: bool, has_momentum: bool
) -> tuple[str, ...]:
    """Those of the groups that a leaf has: none if it is empty."""
    if size == 0:
        return ()
    if not is_matrix:
        return tuple(name for name in asked if name == SIZE)
    return tuple(name for name in asked if has_momentum or name != MOMENTUM)


def sources_of(
    trees: dict[str, Any], found: Sequence[Any]
) -> list[dict[str, jax.Array]]:
    """For each leaf what is measured of it, the momentum where there is one."""
    columns = [jax.tree.leaves(tree) for tree in trees.values()]
    rows = [dict(zip(trees, row, strict=True)) for row in zip(*columns, strict=True)]
    return [
        row if m is None else row | {MOMENTUM: m}
        for row, m in zip(rows, found, strict=True)
    ]


def check_state(
    state: MonitorState, asked: tuple[str, ...], watched: Sequence[Watched]
) -> None:
    """Raise unless the state holds the metrics asked for, of as many leaves."""
    if set(state.records) != set(asked):
        raise ValueError(
            f"monitor records {sorted(asked)}, but the state holds "
            f"{sorted(state.records)}: it was made with other metrics. Call init "
            "again, or pass metrics as they were."
        )
    for group, tree in state.records.items():
        held = len(jax.tree.leaves(tree))
        wanted = sum(group in one.groups for one in watched)
        if held != wanted:
            raise ValueError(
                f"monitor: the state holds {group!r} of {held} leaves, but {wanted} "
                "have it now: it was made for other parameters. Call init again."
            )


def needed(params: Any) -> Any:
    """The parameters, or an error that says what for."""
    if params is None:
        raise ValueError(
            "monitor records norms of weights, but update was called without params; "
            f"pass them, or leave {WEIGHT!r} out of metrics."
        )
    return params


def check_momenta(
    tree: Any,
    are_matrices: Sequence[bool],
    found: Sequence[Any],
    metrics: Collection[str],
) -> None:
    """Raise if metrics of the momentum were named and matrices have none."""
    paths = [name for name, _ in named_leaves(tree)]
    missing = [
        f"  {path}"
        for path, is_matrix, m in zip(paths, are_matrices, found, strict=True)
        if is_matrix and m is None
    ]
    if missing:
        raise ValueError(
            f"monitor: metrics={metrics!r} names the momentum, but inner's state holds "
            "no MuonState or SoapState with one of these matrices:\n"
            + "\n".join(missing)
            + f"\nLeave {MOMENTUM!r} out of metrics, or monitor the "
            "transformation that keeps it."
        )
