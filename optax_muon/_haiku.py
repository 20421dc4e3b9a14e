"""haiku_matrix_axes: the rule for parameters of Haiku models, by their names."""

import re
from typing import Any

from optax_muon._layers import DENSE, convolution, side_by_side
from optax_muon._matrix_axes import MatrixAxes, Path, UndecidedLeafError, path_names
from optax_muon._rules import flax_role

# Of any rank: with channels first, a convolution's "b" is [channels, 1, 1], and
# normalization's "scale" and "offset" are [1, 1, 1, channels].
_VECTORS = {"b", "scale", "offset"}
_GATES = {"gru": 3, "lstm": 4}


def haiku_matrix_axes(path: Path, leaf: Any) -> MatrixAxes | None:
    """A rule for Haiku's parameters, {"module/path": {"w": ..., "b": ...}}.

    AdamW takes `b`, `scale` and `offset` of any rank, other vectors, embeddings, output
    heads (modules named `head`, `logits`, `classifier`, ...), and convolutions with
    one input channel a group, as `flax_matrix_axes` does.

    Muon takes other 2-D leaves, [fan_in, fan_out]; convolutions [*window, in, out] as
    [window * in, out]; transposed ones, whose module's name says so, [*window, out, in]
    as [window * in, out]. The gates of `hk.LSTM`, `hk.GRU` and convolutional LSTMs lie
    side by side in one leaf; each is a matrix of its own. They are known by their
    names: `linear`, `input_to_hidden` and `hidden_to_hidden` in a module whose name
    ends in `lstm`; `w_i` and `w_h` of one whose name ends in `gru`.

    Layers stacked by `hk.experimental.layer_stack` have one axis more: say which by
    `stacked(".*layer_stack.*", inner=haiku_matrix_axes)`, or by the name that you
    gave.

    Args:
      path: jax's key path of the leaf.
      leaf: anything with a shape.

    Returns:
      The matrix axes, or None for AdamW.

    Raises:
      UndecidedLeafError: names and rank do not tell.

    >>> import jax
    >>> params = {"mlp/~/linear_0": {"w": jax.ShapeDtypeStruct((64, 256), "float32")}}
    >>> jax.tree_util.tree_map_with_path(haiku_matrix_axes, params)
    {'mlp/~/linear_0': {'w': MatrixAxes(fan_in=(0,), fan_out=(1,))}}
    """
    parameter, owner, outer = _parameter_and_owners(path)
    rank = len(leaf.shape)
    if rank < 2 or parameter in _VECTORS or flax_role(path) is not None:
        return None
    if rank == 2 and parameter != "weight":
        gates = _gates(parameter, owner, outer, leaf)
        return side_by_side(DENSE, gates, leaf.shape[1])
    words = _words(owner)
    lstm = _cell(outer) == "lstm" and owner in ("input_to_hidden", "hidden_to_hidden")
    if 3 <= rank <= 5 and ("conv" in words or lstm):
        if "transpose" in words:
            return convolution(leaf.shape, inputs=-1, outputs=-2)
        gates = _GATES["lstm"] if lstm and leaf.shape[-1] % _GATES["lstm"] == 0 else 1
        return convolution(leaf.shape, parts=gates)
    if rank == 2:
        raise UndecidedLeafError("'weight' may be [fan_out, fan_in], as in PyTorch")
    raise UndecidedLeafError(f"rank {rank}: no convolution by its names")


def _parameter_and_owners(path: Path) -> tuple[str, str, str]:
    """The names of a parameter, its module, and the module around that."""
    names = [part for name in path_names(path) for part in name.split("/")]
    *modules, parameter = names or [""]
    owners = ["", "", *(name for name in modules if name != "~")]
    # hk numbers modules of one name: linear, linear_1, ...
    outer, owner = (re.sub(r"_\d+$", "", name) for name in owners[-2:])
    return parameter, owner, outer


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", name.lower())


def _cell(name: str) -> str | None:
    """Which gates a module has by its name: hk.Conv2DLSTM's is conv2_dlstm."""
    return next((cell for cell in _GATES if name.lower().endswith(cell)), None)


def _gates(parameter: str, owner: str, outer: str, leaf: Any) -> int:
    """How many gates of one hidden size lie side by side; 1 if there are none."""
    inputs, outputs = leaf.shape
    gru = parameter in ("w_i", "w_h") and _cell(owner) == "gru"
    lstm = parameter == "w" and owner == "linear" and _cell(outer) == "lstm"
    gates = _GATES["gru"] if gru else _GATES["lstm"]
    # An LSTM's linear reads input and hidden, which are more than the hidden size.
    found = gru or (lstm and inputs > outputs // gates)
    return gates if found and outputs % gates == 0 else 1
