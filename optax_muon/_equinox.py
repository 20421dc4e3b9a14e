"""axes_from_equinox: matrix axes read off the layers of an Equinox model.

Names do not tell them: every layer calls its array `weight`, [out, in] here, a table of
embeddings or a norm's scale there. The layers know.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from optax_muon._matrix_axes import MatrixAxes, Path, UndecidedLeafError, path_names
from optax_muon._rules import Rule, flax_role

Matrices = dict[str, tuple[tuple[int, ...], MatrixAxes | None]]
"""Field of a layer -> its shape in one layer, and its axes counted from the end."""


def axes_from_equinox(model: Any, *, others: Rule | None = None) -> dict[str, Any]:
    """Reads the matrix axes of an Equinox model off its layers.

    Muon takes the weights of `Linear`, [out, in], and of convolutions, transposed ones
    too, [out, in, *window] as [in * window, out]. The gates of `LSTMCell` and `GRUCell`
    lie side by side in one leaf; each is a matrix of its own. Layers made by
    `eqx.filter_vmap` (ensembles, stacks for `jax.lax.scan`) have axes in front, which
    are a batch.

    AdamW takes embeddings, norms, biases and activations' parameters; convolutions with
    one input channel a group, which are depthwise or an input layer; and weights of
    layers whose own attribute is named as an output head or an embedding, by the names
    of `flax_matrix_axes` (`head`, `lm_head`, `logits`, `classifier`, `embed`, ...). The
    last layer of an `eqx.nn.MLP` has no such name: where it is a model's output, say
    so in the result.

    Args:
      model: an Equinox module, or a dictionary, list or tuple of them; arrays may be
        abstract (`eqx.filter_eval_shape`).
      others: a rule (path, leaf) for arrays of rank 2 and more that belong to no layer
        of `eqx.nn`; without it they are errors, unless named as an embedding, a
        position, a scale or a bias, which AdamW takes.

    Returns:
      Dictionaries of MatrixAxes | None, by the names of fields and the numbers of
      items: `matrix_axes` where the parameters are
      `eqx.filter(model, eqx.is_inexact_array)`.

    Raises:
      ValueError: one error that lists every array that belongs to no layer, or whose
        shape is not its layer's, as where layers are stacked along another axis.

    >>> import equinox as eqx
    >>> model = eqx.nn.MLP(8, 4, 32, depth=1, key=jax.random.key(0))
    >>> axes = axes_from_equinox(model)
    >>> axes["layers"]["0"]
    {'weight': MatrixAxes(fan_in=(-1,), fan_out=(-2,)), 'bias': None}
    >>> axes["layers"]["1"]["weight"] = None  # the output layer: AdamW
    >>> import optax_muon
    >>> tx = optax_muon.muon(3e-3, matrix_axes=axes)
    >>> state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    """
    decided, failures = {}, []
    for path, leaf, layer, field in _leaves(model):
        try:
            decided[path] = _axes(path, leaf, layer, field, others)
        except UndecidedLeafError as error:
            name = "/".join(path_names(path))
            failures.append(f"  {name}  {leaf.shape} {leaf.dtype}: {error}")
    if failures:
        raise ValueError(
            "axes_from_equinox cannot decide these leaves:\n"
            + "\n".join(failures)
            + "\nPass others=, a rule (path, leaf) -> MatrixAxes | None (None: AdamW) "
            "that decides arrays of no known layer; give matrix_axes a tree of your "
            "own for layers stacked along other axes than the first."
        )
    return _nested(decided)


def _nested(decided: dict[Path, MatrixAxes | None]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, axes in decided.items():
        *outer, last = (jax.tree_util.keystr((key,), simple=True) for key in path)
        inner = nested
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = axes
    return nested


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any, Any, Path]]:
    """Each array: its path, itself, its layer or None, its path in that layer."""
    layer = tree if isinstance(tree, _layers()) else None
    flat, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is not tree and isinstance(x, _layers())
    )
    for below, child in flat:
        if isinstance(child, _layers()):
            yield from _leaves(child, path + below)
        elif hasattr(child, "dtype") and jnp.issubdtype(child.dtype, jnp.inexact):
            yield path + below, child, layer, below


def _layers() -> tuple[type, ...]:
    """Layers with arrays of their own; all others only hold some of these."""
    nn = importlib.import_module("equinox.nn")
    vectors = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm, nn.PReLU)
    matrices = (nn.Linear, nn.Conv, nn.ConvTranspose, nn.LSTMCell, nn.GRUCell)
    return (*matrices, *vectors, nn.Embedding, nn.WeightNorm, nn.StateIndex)


def _axes(
    path: Path, leaf: Any, layer: Any, field: Path, others: Rule | None
) -> MatrixAxes | None:
    if layer is None:
        if len(leaf.shape) < 2 or flax_role(path) is not None:
            return None
        if others is None:
            raise UndecidedLeafError("no layer of eqx.nn, so nothing tells its axes")
        return others(path, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    name, *wrapped = path_names(field)
    if name not in (matrices := _matrices(layer)):
        return None
    shape, axes = matrices[name]
    if wrapped or leaf.shape[-len(shape) :] != shape:
        raise UndecidedLeafError(f"{type(layer).__name__}.{name} is {shape}")
    return None if flax_role(path) is not None else axes


def _matrices(layer: Any) -> Matrices:
    nn = importlib.import_module("equinox.nn")
    if isinstance(layer, nn.Linear):
        sides = (layer.out_features, layer.in_features)
        shape = tuple(1 if side == "scalar" else side for side in sides)
        return {"weight": (shape, MatrixAxes(-1, -2))}
    if isinstance(layer, (nn.Conv, nn.ConvTranspose)):
        return _convolution(layer)
    if isinstance(layer, (nn.LSTMCell, nn.GRUCell)):
        return _gated(layer, 4 if isinstance(layer, nn.LSTMCell) else 3)
    return {}


def _convolution(layer: Any) -> Matrices:
    channels, window = layer.in_channels // layer.groups, layer.kernel_size
    shape = (layer.out_channels, channels, *window)
    inputs = tuple(range(1 - len(shape), 0))
    depthwise_or_input = channels == 1
    axes = None if depthwise_or_input else MatrixAxes(inputs, -len(shape))
    return {"weight": (shape, axes)}


def _gated(layer: Any, gates: int) -> Matrices:
    hidden = layer.hidden_size
    axes = MatrixAxes(-1, -2, fan_out_parts=(hidden,) * gates)
    inputs = {"weight_ih": layer.input_size, "weight_hh": hidden}
    return {name: ((gates * hidden, size), axes) for name, size in inputs.items()}
