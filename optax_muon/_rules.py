"""Rules: which leaf is a matrix, by its names and rank, and their combinators.

A rule is a function (path, leaf) -> MatrixAxes | None: the matrix axes of a leaf that
Muon takes, None for a leaf that goes to AdamW. A rule that cannot tell raises
`UndecidedLeafError`; all such leaves are then reported in one error.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax

from optax_muon._layers import DENSE, convolution, local_convolution
from optax_muon._matrix_axes import (
    MatrixAxes,
    Path,
    Stackable,
    UndecidedLeafError,
    path_name,
    path_names,
)

Rule = Callable[[Path, Any], MatrixAxes | None]

_NO_LEAF: Any = object()


# Words in names. AdamW takes such leaves whatever their rank: attention's biases have
# rank 2, stacked norms too.
_EMBEDDING = {"emb", "embed", "embeds", "embedding", "embeddings", "embedder"}
_EMBEDDING |= {"posemb", "wte", "wpe"}
_POSITION_PARAMETER = {"pos", "position", "positions", "positional"}
_POSITION = _POSITION_PARAMETER | {"posemb", "wpe"}
_VECTOR_PARAMETER = {"bias", "scale", "gamma", "beta"}
_HEAD = {"logit", "logits", "logitdense", "unembed", "unembedding", "vocab"}
_HEAD_AT_THE_END = {"head", "heads", "classifier", "readout"}  # but not `head_norm`
_KERNEL = {"kernel", "w", "weight", "weights"}  # `head_w` is `head/w`
_CONVOLUTION = {"conv", "convs", "convolution"}


def _words(name: str) -> list[str]:
    """Lower-case words of CamelCase, snake_case and numbered names."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _parameter_and_owner(path: Path) -> tuple[str, str]:
    """The names of a parameter and of its module, past indices in lists of modules."""
    # Flat dictionaries have keys such as "mlp/up/kernel" and "mlp.up.weight".
    names = [part for name in path_names(path) for part in re.split(r"[./]", name)]
    *modules, parameter = names or [""]
    owners = [name for name in modules if not name.isdigit()]
    return parameter, owners[-1] if owners else ""


def flax_role(path: Path) -> str | None:
    """What names say a leaf is: "vector", "embedding", "position", "head", or None."""
    names = _parameter_and_owner(path)
    parameter, owner = map(_words, names)
    if _VECTOR_PARAMETER & set(parameter):
        return "vector"
    words = set(parameter + owner)
    if _EMBEDDING & words or _POSITION_PARAMETER & set(parameter):
        return "position" if _POSITION & words else "embedding"
    own = parameter[:-1] if _KERNEL & set(parameter[-1:]) else parameter
    if _HEAD & words or _HEAD_AT_THE_END & {*own[-1:], *owner[-1:]}:
        return "head"
    return None


def flax_matrix_axes(path: Path, leaf: Any) -> MatrixAxes | None:
    """The default rule: decides by Flax's names (Linen and NNX), then by rank.

    AdamW takes vectors and scalars, biases and norm scales of any rank, embeddings of
    tokens and positions, output heads (modules or parameters named `head`, `lm_head`,
    `logits`, `classifier`, ...), and convolutions with one input channel a group:
    those are depthwise, where no matrix mixes channels, or read a one-channel image,
    an input layer.

    Muon takes other 2-D leaves, [fan_in, fan_out] as Flax's kernels; convolutions
    [*window, in, out] as [window * in, out]; attention's query, key and value
    [d, heads, head_dim] as [d, heads * head_dim], and its out [heads, head_dim, d] as
    [heads * head_dim, d].

    `ConvTranspose(transpose_kernel=True)` stores [*window, out, in], which no name
    tells: give its axes yourself.

    Args:
      path: jax's key path of the leaf.
      leaf: anything with a shape.

    Returns:
      The matrix axes, or None for AdamW.

    Raises:
      UndecidedLeafError: names and rank do not tell, as for layers stacked by
        `nn.scan` or `nnx.scan` (see `stacked`), or 2-D leaves named `weight`, which
        hold [fan_out, fan_in] in other libraries.

    >>> params = {"query": {"kernel": jax.ShapeDtypeStruct((64, 4, 16), "float32")}}
    >>> jax.tree_util.tree_map_with_path(flax_matrix_axes, params)
    {'query': {'kernel': MatrixAxes(fan_in=(0,), fan_out=(1, 2))}}
    """
    parameter, owner = _parameter_and_owner(path)
    rank = len(leaf.shape)
    if rank < 2 or flax_role(path) is not None:
        return None
    if rank == 2 and parameter != "weight":
        return DENSE
    if rank == 3 and owner in ("query", "key", "value"):
        return MatrixAxes(0, (1, 2))
    if rank == 3 and owner == "out":
        return MatrixAxes((0, 1), 2)
    if 3 <= rank <= 5 and _CONVOLUTION & set(_words(owner)):
        if "local" in _words(owner):  # ConvLocal: a matrix for each position
            return local_convolution(rank)
        return convolution(leaf.shape)
    if rank == 2:
        raise UndecidedLeafError("'weight' may be [fan_out, fan_in], as in PyTorch")
    raise UndecidedLeafError(f"rank {rank}: no attention or convolution by its names")


def stacked(
    pattern: str, axis: int = 0, inner: Callable[[Path, Any], Any] = flax_matrix_axes
) -> Callable[[Path, Any], Any]:
    """A rule for layers stacked along `axis` by `nn.scan`, `nnx.scan` or `vmap`.

    Under paths that match, `inner` sees the leaf without that axis, which becomes a
    batch axis: every layer stays a matrix of its own. Other leaves go to `inner` as
    they are. Always name stacked layers: some of their leaves look like others, as a
    stacked 2-D convolution like a 3-D one. A leaf that is a matrix as a whole, and a
    vector without that axis, is undecided: its layers may be separate ones, and stacked
    vectors whose names do not say so are for `inner` to send to AdamW.

    Args:
      pattern: regular expression for one whole path component, or several joined
        by "/": "layers", "scan_.*", "decoder/layers".
      axis: the stacked axis in the leaf; negative ones count from the end.
      inner: the rule for one layer: one for `matrix_axes`, one for `scale_by_lmo`, or
        one for `qk_clip`.

    Returns:
      A rule of the same kind, or an `inner` of another.

    >>> import optax_muon
    >>> shape = jax.ShapeDtypeStruct((12, 64, 256), "float32")
    >>> print(optax_muon.plan({"layers": {"up": {"kernel": shape}}},
    ...       optax_muon.stacked("layers")).leaves[0].matrix)
    (64, 256)
    """
    _check_rule(inner)
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TypeError(f"axis={axis!r} must be an int, the stacked axis of a leaf.")
    whole = components(pattern)

    def rule(path: Path, leaf: Any = _NO_LEAF) -> Any:
        _check_leaf(f"stacked({pattern!r})", leaf)
        names = path_name(path)
        found = whole.search(names)
        if not found:
            return inner(path, leaf)
        index, *below = names[found.end() :].split("/")
        if below and index.isdigit():
            raise UndecidedLeafError(
                f"stacked({pattern!r}) matches a list of separate layers, which needs "
                "no rule of its own; where each entry is a stack, match the entries: "
                f"stacked('{pattern}/[0-9]+')"
            )
        rank = len(leaf.shape)
        at = axis + rank if axis < 0 else axis
        if not 0 <= at < rank:
            raise UndecidedLeafError(f"stacked({pattern!r}, axis={axis}): no such axis")
        shape = leaf.shape[:at] + leaf.shape[at + 1 :]
        axes = inner(path, jax.ShapeDtypeStruct(shape, leaf.dtype))
        if len(shape) < 2 <= rank and _is_matrix(inner, path, leaf):
            raise UndecidedLeafError(
                f"rank {rank} under stacked({pattern!r}): is it stacked? One layer's "
                f"would be {shape}, no matrix; let the pattern match stacked layers "
                "alone, or, if these are stacked vectors, let inner give None for it"
            )
        if not isinstance(axes, Stackable):
            return axes  # None; anything else is refused where rules are called
        return axes.stacked(at, shape)

    return rule


def fused(
    pattern: str,
    parts: tuple[int, ...],
    side: str = "fan_out",
    inner: Rule = flax_matrix_axes,
) -> Rule:
    """A rule for matrices side by side in one leaf, each to be treated on its own.

    Query, key and value in one kernel, with grouped queries or without; gate and up.
    Updates are those of the parts as separate leaves.

    Args:
      pattern: regular expression for one whole path component, or several joined
        by "/".
      parts: the lengths of the parts along the (merged) fan-in or fan-out, in the order
        in which they lie there.
      side: "fan_out" or "fan_in", the side along which they lie.
      inner: the rule for the leaf as one matrix; leaves that it sends to AdamW, such as
        biases, stay there.

    Returns:
      A rule, to be passed as `matrix_axes`, or as `inner` of another. Parts of an
      `optax.chain` that take `matrix_axes` must all be told the same; those of `muon`
      and `route` take theirs.

    >>> import optax_muon
    >>> shape = jax.ShapeDtypeStruct((64, 128), "float32")
    >>> print(optax_muon.plan({"qkv": {"kernel": shape}},
    ...       optax_muon.fused("qkv", (64, 32, 32))).leaves[0].parts)
    ((64, 64), (64, 32), (64, 32))
    """
    _check_rule(inner)
    if side not in ("fan_in", "fan_out"):
        raise ValueError(f"side={side!r} is not known; pass 'fan_in' or 'fan_out'.")
    lengths = getattr(MatrixAxes(**{f"{side}_parts": parts}), f"{side}_parts")
    whole = components(pattern)

    def rule(path: Path, leaf: Any = _NO_LEAF) -> MatrixAxes | None:
        _check_leaf(f"fused({pattern!r})", leaf)
        axes = inner(path, leaf)
        if not whole.search(path_name(path)):
            return axes
        if not isinstance(axes, MatrixAxes) or not getattr(axes, side):
            return axes  # for AdamW; a bias, which has no inputs to be parted
        return dataclasses.replace(axes, **{f"{side}_parts": lengths})

    return rule


def _is_matrix(inner: Callable[[Path, Any], Any], path: Path, leaf: Any) -> bool:
    """Whether a rule takes the leaf for a matrix."""
    try:
        axes = inner(path, leaf)
    except UndecidedLeafError:
        return False
    return isinstance(axes, MatrixAxes) and bool(axes.fan_in and axes.fan_out)


def _check_leaf(rule: str, leaf: Any) -> None:
    """Raise if a rule is called as a schedule is, with one argument."""
    if leaf is _NO_LEAF:
        raise TypeError(
            f"{rule} was called without a leaf, as schedules are: name the argument "
            "that holds it, such as matrix_axes, in static_args of "
            "optax.inject_hyperparams, which takes other functions for schedules."
        )


def _check_rule(inner: Any) -> None:
    if not callable(inner) or isinstance(inner, type):
        raise TypeError(
            f"inner={inner!r} is no rule; pass a function (path, leaf) -> "
            "MatrixAxes | None, such as lambda path, leaf: MatrixAxes(0, 1)."
        )


def components(pattern: str) -> re.Pattern[str]:
    """Finds whole components of a path, joined by "/"."""
    try:
        return re.compile(f"(?:^|/)(?:{pattern})(?:/|$)")
    except re.error as error:
        raise ValueError(
            f"pattern={pattern!r} is no regular expression: {error}."
        ) from None
