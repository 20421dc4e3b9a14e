"""Leaves put together to attentions, and each attention to its largest logits."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon._casts import widen
from optax_muon._combinators import unmet
from optax_muon._matrix_axes import Path, UndecidedLeafError
from optax_muon._qk_leaves import QKLeaf, QKView
from optax_muon._qk_rules import QKRule, leaf_names

Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Attention:
    """One attention: its stacked layers, query heads and key heads, and its leaves.

    Attributes:
      leaves: (number of the leaf in the tree, how it holds queries and keys).
    """

    layers: tuple[int, ...]
    heads: int
    key_heads: int
    leaves: tuple[tuple[int, QKView], ...]


def attentions(tree: Any, rule: QKRule) -> dict[Names, Attention]:
    """The attentions whose leaves are in `tree`, by path.

    Raises:
      ValueError: lists every leaf and attention that cannot be clipped.
    """
    leaves_of: dict[Names, list[tuple[int, QKView]]] = {}
    found, problems = {}, []
    for index, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(tree)[0]):
        try:
            said = _said(rule, path, jnp.shape(leaf), jnp.result_type(leaf))
        except UndecidedLeafError as error:
            problems.append(
                f"  {_joined(leaf_names(path))}  {jnp.shape(leaf)}: {error}"
            )
            continue
        if said is not None:
            names = tuple(re.split("[./]", said[0])) if said[0] else ()
            leaves_of.setdefault(names, []).append((index, said[1]))
    for names, leaves in leaves_of.items():
        try:
            found[names] = _attention(leaves)
        except UndecidedLeafError as error:
            problems.append(f"  {_joined(names)}: {error}")
    no_match = unmet("rule", rule, tree)
    if problems:
        raise ValueError(
            "qk_clip cannot clip these leaves and attentions:\n"
            + "\n".join(problems)
            + "\nPass rule=, a function (path, leaf) -> QKLeaf | None (None: no part "
            "in the logits), such as optax_muon.stacked('layers', "
            "inner=optax_muon.flax_qk_leaves) for layers stacked by nn.scan, nnx.scan "
            "or vmap." + no_match
        )
    if no_match:
        raise ValueError(f"qk_clip: {no_match.strip()}")
    return found


def _said(
    rule: QKRule, path: Path, shape: tuple[int, ...], dtype: Any
) -> tuple[str, QKView] | None:
    """The path of the leaf's attention and the leaf's parts; None if it has no part."""
    said = rule(path, jax.ShapeDtypeStruct(shape, dtype))
    if said is None:
        return None
    if not isinstance(said, QKLeaf):
        raise UndecidedLeafError(f"the rule gave {said!r}, neither a QKLeaf nor None")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UndecidedLeafError(f"{dtype} is no real floating dtype")
    return said.attention, said.view(shape)


def _attention(leaves: list[tuple[int, QKView]]) -> Attention:
    views = [view for _, view in leaves]

    def heads(*roles: str) -> list[int]:
        return sorted({n * v.group for v in views for n in v.counts(*roles)})

    keys = sorted({n for v in views for n in v.counts("key")})
    queries = heads("query", "rotary_query")
    if not keys or not heads("query"):
        raise UndecidedLeafError(
            "it needs leaves of query and of key, unmasked: to scale one of them alone "
            "does not bring a logit to tau"
        )
    layers = sorted({view.layer_sizes for view in views})
    if len(layers) > 1 or len(keys) > 1 or len(queries) > 1:
        raise UndecidedLeafError(
            f"its leaves disagree: {queries} query heads, {keys} key heads, stacks of "
            f"layers {layers}"
        )
    shared = [n % keys[0] for v in views for n in v.counts("query", "rotary_query")]
    if any(shared):
        raise UndecidedLeafError(
            f"{keys[0]} key heads do not divide {queries[0]} query heads"
        )
    return Attention(layers[0], queries[0], keys[0], tuple(leaves))


def logits_of(found: dict[Names, Attention], max_logits: Any) -> dict[Names, jax.Array]:
    """The largest logits [*layers, heads] of each attention, at least float32.

    An entry belongs to the innermost attention above it, whose path it must have or be
    named `max_logits`. Of several, as of a module called more than once, the largest
    counts.

    Raises:
      ValueError: lists every entry and attention without a counterpart, and every shape
        that does not fit.
    """
    entries: dict[Names, list[jax.Array]] = {names: [] for names in found}
    problems = []
    for path, entry in jax.tree_util.tree_flatten_with_path(max_logits)[0]:
        while path and isinstance(path[-1], jax.tree_util.SequenceKey):
            path = path[:-1]  # one of the tuple that a plain `sow` makes
        names = leaf_names(path)
        above = [n for n in found if n == names[: len(n)]]
        owner = max(above, key=len, default=None)
        below = [n for n in names[len(owner or ()) :] if not n.isdigit()]
        if owner is None or below[-1:] not in ([], ["max_logits"]):
            problems.append(f"  {_joined(names)}: an entry that no attention uses")
        else:
            entries[owner].append(entry)
    for names, attention in found.items():
        wanted = (*attention.layers, attention.heads)
        if not entries[names]:
            problems.append(f"  {_joined(names)}: an attention without entry")
        problems += [
            f"  {_joined(names)}: an entry of shape {jnp.shape(entry)}, expected "
            f"[*layers, heads] = {wanted}"
            for entry in entries[names]
            if jnp.shape(entry) != wanted
        ]
    if problems:
        raise ValueError(
            "max_logits does not fit the attentions in the parameters:\n"
            + "\n".join(problems)
            + "\nPass for each attention, at the path of its module or below it under "
            "the name max_logits, the largest logit of each query head, and nothing "
            "else. rule= decides which attentions there are."
        )
    # fmax: NaN in one says nothing of the others.
    return {
        names: jax.tree.reduce(jnp.fmax, [_whole(widen(entry)) for entry in those])
        for names, those in entries.items()
    }


def _whole(x: jax.Array) -> jax.Array:
    """`x` on each device: on Explicit axes, shards of it could not be repeated."""
    sharding = jax.typeof(x).sharding
    if not any(sharding.spec):
        return x
    return jax.reshard(x, NamedSharding(sharding.mesh, P()))


def _joined(names: Names) -> str:
    return "/".join(names) or "(root)"
