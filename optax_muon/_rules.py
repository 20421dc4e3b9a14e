"""Rules: which leaf is a matrix; the default one decides by names and rank.

A rule is a function (path, leaf) -> MatrixAxes | None: the matrix axes of a leaf that
Muon takes, None for a leaf that goes to AdamW. A rule that cannot tell raises
`UndecidedLeafError`; all such leaves are then reported in one error.
"""

import re
from collections.abc import Callable
from typing import Any

from optax_muon._layers import DENSE, convolution, local_convolution
from optax_muon._matrix_axes import (
    MatrixAxes,
    Path,
    UndecidedLeafError,
    path_names,
)

Rule = Callable[[Path, Any], MatrixAxes | None]

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

    >>> import jax
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
