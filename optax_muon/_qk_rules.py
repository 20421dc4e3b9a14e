"""Which leaves make queries and keys, by their names: rules for `qk_clip`.

A rule is a function (path, leaf) -> QKLeaf | None: None for a leaf that has no part in
attention's logits. A rule that cannot tell raises `UndecidedLeafError`; all such leaves
are then reported in one error.
"""

import re
from collections.abc import Callable
from typing import Any

from optax_muon import _checks
from optax_muon._matrix_axes import Path, UndecidedLeafError, path_names
from optax_muon._qk_leaves import Parts, QKLeaf

QKRule = Callable[[Path, Any], QKLeaf | None]


def leaf_names(path: Path) -> tuple[str, ...]:
    """The names along a path, those of flat dictionaries one by one.

    Their keys are such as "block/key/kernel", or ("block", "key", "kernel").
    """
    names: list[str] = []
    for name, key in zip(path_names(path), path, strict=False):
        joined = getattr(key, "key", None)
        if isinstance(joined, tuple):
            names += map(str, joined)
        else:
            names += re.split(r"[./]", name)
    return tuple(names)


def flax_qk_leaves(path: Path, leaf: Any) -> QKLeaf | None:
    """The default rule of `qk_clip`: query and key of Flax's attentions.

    It takes kernels [d, heads, head_dim] and biases [heads, head_dim] of modules named
    `query` and `key`, in Linen and NNX, with fewer key heads than query heads as well.
    For stacked layers, `stacked("layers", inner=flax_qk_leaves)`.

    Args:
      path: jax's key path of the leaf.
      leaf: anything with a shape.

    Returns:
      What the leaf holds, or None for a leaf that has no part in the logits.

    Raises:
      UndecidedLeafError: other leaves of such modules; `query_ln` and `key_ln`
        (`normalize_qk=True`): after them, no clipping of weights bounds a logit.

    >>> import jax
    >>> bias = jax.ShapeDtypeStruct((4, 16), "float32")
    >>> tree = {"attention": {"key": {"bias": bias}, "out": {"bias": bias}}}
    >>> found = jax.tree_util.tree_map_with_path(flax_qk_leaves, tree)
    >>> found["attention"]["key"]["bias"].attention, found["attention"]["out"]["bias"]
    ('attention', None)
    """
    attention, projection, parameter = _named(path)
    if projection in ("query_ln", "key_ln"):
        raise UndecidedLeafError(
            "query and key are normalised after their projections, so clipping these "
            "does not bound the logits; leave qk_clip out, or let the rule give None "
            "for this attention"
        )
    if projection not in ("query", "key"):
        return None
    rank = {"kernel": 3, "bias": 2}.get(parameter)
    if len(leaf.shape) != rank:
        raise UndecidedLeafError(
            "neither a kernel [d, heads, head_dim] nor a bias [heads, head_dim]"
        )
    return QKLeaf(attention, projection)


# DeepSeek-V3's model.py and its port in transformers, MaxText, and plain words.
_QUERY_UP = {"q_up", "q_up_proj", "q_b_proj", "wq_b", "q_proj", "wq", "query"}
_KEY_VALUE_UP = {"kv_up", "kv_up_proj", "kv_b_proj", "wkv_b"}
_KEY_UP = {"k_up", "k_up_proj", "k_b_proj"}
_QUERY_ALONE = {"q_rope", "q_rope_proj", "q_nope", "q_nope_proj"}


def mla_qk_leaves(*, content: int, rotary: int, value: int) -> QKRule:
    """A rule for multi-head latent attention (MLA), as DeepSeek and Kimi name it.

    Per head, the up-projections hold content next to rotary query (`q_up`, `q_b_proj`,
    `wq_b`; without a latent query `q_proj`, `wq`, `query`), and content key next to
    value (`kv_up`, `kv_b_proj`, `wkv_b`), or content key alone (`k_up`, `k_b_proj`).
    The shared rotary key (`k_rope`, or a part of `kv_a_proj_with_mqa`) stays as it is,
    and so do all other leaves. Kernels are [rank, heads, features] or
    [rank, heads * features], heads outermost; biases likewise.

    Args:
      content: features a head of query and key without positions (qk_nope_head_dim).
      rotary: features a head with rotary positions (qk_rope_head_dim).
      value: features a head of values (v_head_dim).

    Returns:
      A rule, for `qk_clip(rule=...)` or as `inner` of `stacked`.

    Raises:
      ValueError: a size that is no positive int.

    >>> import jax
    >>> rule = mla_qk_leaves(content=128, rotary=64, value=128)
    >>> kernel = jax.ShapeDtypeStruct((512, 16 * 256), "float32")
    >>> tree = {"self_attn": {"kv_b_proj": {"kernel": kernel}}}
    >>> found = jax.tree_util.tree_map_with_path(rule, tree)
    >>> found["self_attn"]["kv_b_proj"]["kernel"].parts
    (('key', 128), (None, 128))
    """
    sizes = {"content": content, "rotary": rotary, "value": value}
    for argument, size in sizes.items():
        _checks.check_positive_int(argument, size)
    tables: list[tuple[set[str], Parts]] = [
        (_QUERY_UP, (("query", content), ("rotary_query", rotary))),
        (_KEY_VALUE_UP, (("key", content), (None, value))),
        (_KEY_UP, (("key", content),)),
    ]
    parts_of = {name: parts for names, parts in tables for name in names}

    def rule(path: Path, leaf: Any) -> QKLeaf | None:
        attention, projection, parameter = _named(path)
        if projection in _QUERY_ALONE:
            raise UndecidedLeafError(
                "content and rotary query in leaves of their own: write a rule of "
                "QKLeaf(attention, 'query') and QKLeaf(attention, 'rotary_query', ...)"
            )
        if projection not in parts_of:
            return None
        parts = parts_of[projection]
        inputs = {"kernel": 1, "bias": 0}.get(parameter)
        outputs = None if inputs is None else len(leaf.shape) - inputs
        if outputs == 2:
            return QKLeaf(attention, parts)
        if outputs == 1:
            return QKLeaf(
                attention, parts, heads=-1, head_width=sum(n for _, n in parts)
            )
        raise UndecidedLeafError(
            "neither a kernel [rank, heads, features] or [rank, heads * features] nor "
            "the bias of one ('weight' may be [out, in], as in PyTorch)"
        )

    return rule


def _named(path: Path) -> tuple[str, str, str]:
    """The path of a projection's module, the projection, and its parameter."""
    names = leaf_names(path)
    projection, parameter = ("", "", *names)[-2:]
    return "/".join(names[:-2]), projection, parameter
