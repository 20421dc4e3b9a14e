"""The parameters of an NNX model, each with what the modules that hold it say of it.

Imports Flax: to be imported only where it is needed.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from optax_muon._model_leaves import ModelLeaf, agreed

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
    occurrences: dict[int, list[tuple[Names, list[Any]]]] = {}
    for path, inside, shared in _occurrences(model, (), []):
        occurrences.setdefault(id(shared), []).append((path, inside))
    found = []
    for names, _ in nnx.to_flat_state(nnx.state(model, wrt)):
        *nodes, variable = _nodes(model, names)
        modules = tuple(around[id(variable)])
        declared, layer = agreed(
            [
                _declared(holder, name, nodes)
                for holder, name in holders.get(id(variable), [])
            ]
        )
        value = variable.get_value()
        every = dict.fromkeys([names])
        every |= dict.fromkeys(path for path, _ in occurrences.get(id(variable), []))
        spoken = [_spoken(nodes, names)]
        spoken += [_spoken(*reversed(one)) for one in occurrences.get(id(variable), [])]
        leaf = ModelLeaf(
            path=_keys(names),
            aliases=tuple(_keys(path) for path in every if path != names),
            # None is no leaf for AdamW either.
            shape=() if value is None else getattr(value, "shape", None),
            dtype=getattr(value, "dtype", None),
            owner=type(_owner(nodes)).__name__,
            modules=modules,
            declared=() if value is None else declared,
            layer=layer,
            spoken=tuple(_keys(path) for path in spoken),
            # Nothing in a model tells how far up its modules were stacked together.
            together=len(names) - 1,
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
        holds_items = isinstance(node, (Mapping, Sequence)) and not hasattr(
            node, "_fields"
        )
        is_attribute = isinstance(name, str) and (
            isinstance(node, nnx.Pytree) or not holds_items
        )
        node = getattr(node, name) if is_attribute else node[name]
        yield node


def _owner(nodes: list[Any]) -> Any:
    """The innermost module that is more than a container."""
    containers = (nnx.List, nnx.Dict)
    modules = [node for node in nodes if isinstance(node, nnx.Module)]
    return next(
        (m for m in reversed(modules) if not isinstance(m, containers)), nodes[0]
    )


def _occurrences(
    node: Any, path: Names, nodes: list[Any]
) -> Iterator[tuple[Names, list[Any], nnx.Variable]]:
    """Every path to every variable, with what lies along it: shared ones have many."""
    if isinstance(node, nnx.Variable):
        yield path, nodes, node
    elif not any(node is above for above in nodes):  # modules may refer to each other
        for name, child in _children(node):
            yield from _occurrences(child, (*path, name), [*nodes, node])


def _children(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, nnx.List):
        return enumerate(node)
    if isinstance(node, nnx.Pytree):
        return [(k, v) for k, v in vars(node).items() if not k.startswith("_pytree__")]
    inside = jax.tree_util.tree_leaves_with_path(
        node, is_leaf=lambda inner: inner is not node
    )
    return [(_name(key[0]), child) for key, child in inside if key]


def _name(key: Any) -> Any:
    """What a key of jax's paths holds: an attribute's name, a key or an index."""
    fields = ("name", "key", "idx")
    return next(getattr(key, field) for field in fields if hasattr(key, field))


def _keys(names: Names) -> tuple[jax.tree_util.DictKey, ...]:
    return tuple(jax.tree_util.DictKey(name) for name in names)


def _spoken(nodes: list[Any], names: Names) -> Names:
    """A path without the names that wrappers of layers put in."""
    return tuple(
        name
        for node, name in zip(nodes, names, strict=True)
        if not any(isinstance(node, c) and name == inner for c, inner in _WRAPPERS)
    )


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
            axes = side_by_side(axes, gates, shape[1])
    return Declared(axes, shape)


def _convolution(layer: Any) -> Declared:
    shape = tuple(layer.kernel_shape)
    if getattr(layer, "transpose_kernel", False):
        return Declared(convolution(shape, inputs=-1, outputs=-2), shape)
    groups = getattr(layer, "feature_group_count", 1)
    return Declared(convolution(shape, parts=groups), shape)


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
