"""What a user's tree (or tree prefix) says of a leaf: looked up by path.

By path, not by structure: masks replace leaves, and NNX passes variables to `init` but
bare arrays to `update`.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_muon._matrix_axes import Path, path_names

MISSING = object()


def entries_by_path(
    argument: str, kind: str, tree: Any, entries: Any, is_entry: Callable[[Any], bool]
) -> Callable[[Path], Any]:
    """A function that gives the entry for a leaf's path, or MISSING.

    Args:
      argument: the name of the user's argument, for messages.
      kind: what its leaves must be, for messages; None is allowed as well.
      tree: the parameters, or a masked part of them.
      entries: the user's tree.
      is_entry: whether a leaf of `entries` is of that kind.

    Raises:
      TypeError: leaves of another kind.
      ValueError: paths that `tree` lacks.
    """
    found = dict(_flat(entries, lambda x: x is None or is_entry(x)))
    bad = {
        "/".join(names): entry
        for names, entry in found.items()
        if entry is not None and not is_entry(entry)
    }
    if bad:
        raise TypeError(
            f"{argument} holds leaves that are neither {kind} nor None: {bad}."
        )
    known = names_of(tree)
    unused = [
        "/".join(entry)
        for entry in found
        if not any(_nested(entry, names) for names in known)
    ]
    if unused and known:  # optax.tree.map_params calls init with an empty tree
        raise ValueError(
            f"{argument} names {unused}, which the parameters lack; it must be a tree "
            f"(or tree prefix) of {kind} | None like the parameters."
        )

    def entry_of(path: Path) -> Any:
        # With the last `.value`: it may be the name of a field of a user's own.
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        for length in range(len(names), -1, -1):
            if names[:length] in found:
                return found[names[:length]]
        return MISSING

    return entry_of


def names_of(tree: Any) -> list[tuple[str, ...]]:
    """The names along the path of each leaf, also of those that a mask holds back."""
    return [names for names, _ in _flat(tree, _is_hole)]


def _flat(
    tree: Any, is_leaf: Callable[[Any], bool]
) -> list[tuple[tuple[str, ...], Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return [(path_names(path), leaf) for path, leaf in flat]


def _is_hole(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)


def _nested(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]
