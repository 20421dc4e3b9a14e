"""The parameters of an NNX model, each with what the modules that hold it say of it.

Imports Flax: to be imported only where it is needed.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from optax_muon._layers import (
    DENSE,
    Declared,
    convolution,
    einsum,
    general,
    side_by_side,
)
from optax_muon._matrix_axes import UndecidedLeafError
from optax_muon._model_leaves import ModelLeaf

_NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)
# Cells with the gates of one product side by side, and how many there are.
_FUSED_GATES = ((nnx.OptimizedLSTMCell, 4), (nnx.GRUCell, 3))
# Modules that wrap a layer, and under which name: it says nothing of the layer's role.
_WRAPPERS = (
    (nnx.LoRA, "base_module"),
    (nnx.LoRALinear, "lora"),
    (nnx.WeightNorm, "layer_instance"),
    (nnx.SpectralNorm, "layer_instance"),
)

Names = tuple[Any, ...]


def leaves_of_nnx(model: nnx.Module, wrt: Any) -> list[tuple[Names, ModelLeaf]]:
    """Each parameter that `wrt` selects, with its names in `nnx.state(model, wrt)`."""
    around, holders = _surroundings(model)
    found = []
    for names, _ in nnx.to_flat_state(nnx.state(model, wrt)):
        *nodes, variable = _nodes(model, names)
        modules = tuple(around[id(variable)])
        declared = [
            _declared(holder, name, nodes)
            for holder, name in holders.get(id(variable), [])
        ]
        known = tuple(one for one in declared if one is not None)
        shapes = {one.shape for one in known if one.shape is not None}
        value = variable.get_value()
        keys = [jax.tree_util.DictKey(name) for name in names]
        leaf = ModelLeaf(
            path=tuple(keys),
            shape=getattr(value, "shape", None),
            dtype=getattr(value, "dtype", None),
            owner=type(_owner(nodes)).__name__,
            modules=modules,
            declared=known,
            layer=shapes.pop() if len(shapes) == 1 else None,
            spoken=tuple(_spoken(nodes, keys)),
        )
        found.append((names, leaf))
    return found


def _surroundings(
    model: nnx.Module,
) -> tuple[dict[int, list[Any]], dict[int, list[tuple[Any, str]]]]:
    """By identity of variables: all modules around each, and those that hold it."""
    around: dict[int, list[Any]] = {}
    holders: dict[int, list[tuple[Any, str]]] = {}
    for _, module in nnx.iter_modules(model):
        for _, inside in nnx.iter_graph(module):
            if isinstance(inside, nnx.Variable):
                around.setdefault(id(inside), []).append(module)
        for name, held in vars(module).items():
            if isinstance(held, nnx.Variable):
                holders.setdefault(id(held), []).append((module, name))
    return around, holders


def _nodes(model: nnx.Module, names: Names) -> Iterator[Any]:
    """What lies along a path: modules and containers, and the variable at last."""
    node: Any = model
    yield node
    for name in names:
        is_attribute = isinstance(node, nnx.Pytree) and isinstance(name, str)
        node = getattr(node, name) if is_attribute else node[name]
        yield node


def _owner(nodes: list[Any]) -> Any:
    """The innermost module that is more than a container."""
    containers = (nnx.List, nnx.Dict)
    modules = [node for node in nodes if isinstance(node, nnx.Module)]
    return next(
        (m for m in reversed(modules) if not isinstance(m, containers)), nodes[0]
    )


def _spoken(nodes: list[Any], keys: list[Any]) -> Iterator[Any]:
    for node, key in zip(nodes, keys, strict=True):
        if not any(isinstance(node, c) and key.key == name for c, name in _WRAPPERS):
            yield key


def _declared(layer: Any, name: str, nodes: list[Any]) -> Declared | None:
    """What a layer says of its parameter of that name; None if it is not known."""
    if name == "kernel":
        return _kernel(layer, nodes)
    if name == "bias":
        return _bias(layer)
    if name == "embedding" and isinstance(layer, nnx.Embed):
        return Declared(is_embedding=True)
    if name == "scale" and isinstance(layer, _NORMS):
        return Declared()
    if name == "negative_slope" and isinstance(layer, nnx.PReLU):
        return Declared()
    if name == "lora_a" and isinstance(layer, nnx.LoRA):
        return Declared(DENSE, (layer.in_features, None))
    if name == "lora_b" and isinstance(layer, nnx.LoRA):
        return Declared(DENSE, (None, layer.out_features))
    return None


def _kernel(layer: Any, nodes: list[Any]) -> Declared | None:
    if isinstance(layer, nnx.Linear):
        return _linear(layer, nodes)
    if isinstance(layer, nnx.LinearGeneral):
        batch = tuple(layer.batch_axis.values())
        sides = (batch, layer.in_features, layer.out_features)
        return Declared(general(*map(len, sides)), sum(sides, ()))
    if isinstance(layer, nnx.Einsum):
        shape = tuple(layer.kernel_shape)
        try:
            return Declared(einsum(layer.einsum_str), shape)
        except UndecidedLeafError as reason:
            return Declared(shape=shape, problem=str(reason))
    if isinstance(layer, (nnx.Conv, nnx.ConvTranspose)):
        return _convolution(layer)
    return None


def _linear(layer: nnx.Linear, nodes: list[Any]) -> Declared:
    shape = (layer.in_features, layer.out_features)
    axes = DENSE
    for cell, (kind, gates) in itertools.product(nodes[-2:-1], _FUSED_GATES):
        if isinstance(cell, kind) and any(
            layer is getattr(cell, name) for name in ("dense_i", "dense_h")
        ):
            axes = side_by_side(axes, gates, shape[1] // gates)
    return Declared(axes, shape)


def _convolution(layer: Any) -> Declared:
    shape = tuple(layer.kernel_shape)
    swapped = getattr(layer, "transpose_kernel", False)
    outputs, inputs = shape[-2:] if swapped else reversed(shape[-2:])
    groups = getattr(layer, "feature_group_count", 1)
    axes = convolution(len(shape), inputs, outputs, groups=groups, swapped=swapped)
    return Declared(axes, shape)


def _bias(layer: Any) -> Declared | None:
    if isinstance(layer, (nnx.Linear, nnx.Conv, nnx.ConvTranspose)):
        return Declared(shape=(layer.out_features,))
    if isinstance(layer, nnx.LinearGeneral):
        return Declared(shape=(*layer.batch_axis.values(), *layer.out_features))
    if isinstance(layer, nnx.Einsum):
        return Declared(
            shape=None if layer.bias_shape is None else (*layer.bias_shape,)
        )
    return Declared() if isinstance(layer, _NORMS) else None
