"""The parameters of a Linen module, each with what the module that made it says of it.

The module is initialized abstractly, and every call of a method inside is watched:
there each module sees its own parameters as one layer has them, before `nn.scan` and
`nn.vmap` stack them. Imports Flax: to be imported only where it is needed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import Scope
from flax.linen.recurrent import DenseParams

from optax_muon._boxes import is_box
from optax_muon._layers import (
    DENSE,
    Declared,
    convolution,
    einsum,
    general,
    local_convolution,
    side_by_side,
)
from optax_muon._matrix_axes import (
    MatrixAxes,
    UndecidedLeafError,
    path_name,
    path_names,
)
from optax_muon._model_leaves import ModelLeaf
from optax_muon._stack_axes import Lengths

_NORMS = (nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)
# What has a parameter named so says nothing but that it goes to AdamW.
_VECTORS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("bias", _NORMS),
    ("scale", _NORMS),
    ("negative_slope", (nn.PReLU,)),
)

# What wraps a layer as `layer_instance`, which says nothing of the layer's role.
_WRAPPERS = (nn.WeightNorm, nn.SpectralNorm)

Names = tuple[str, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A module that was seen with a parameter of its own, and the parameter's shape.

    The equation is that of an Einsum, where it was told.
    """

    module: nn.Module
    shape: Shape
    equation: str | None


class Watch:
    """An interceptor of methods: which modules have which parameters of their own."""

    def __init__(self) -> None:
        self.modules: dict[Names, list[nn.Module]] = {}
        self.made: dict[Names, list[Made]] = {}
        self._seen: dict[Names, set[tuple[int, Shape]]] = {}

    def __call__(
        self, method: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        """Calls the method, then looks at its module."""
        result = method(*args, **kwargs)
        module = context.module
        # Lifted modules are also tried out, in a scope of another class.
        if type(module.scope) is Scope:
            equation = _equation(module, context.method_name, args, kwargs)
            self._look_at(module, equation)
        return result

    def _look_at(self, module: nn.Module, equation: str | None) -> None:
        self.modules.setdefault(module.path, []).append(module)
        params = module.variables.get("params", {})
        for path, value in jax.tree.leaves_with_path(params, is_leaf=is_box):
            shape = jnp.shape(nn.unbox(value))
            own = path_name(path).split("/")
            names = (*module.path, *own)
            self._seen.setdefault(names, set()).add((len(module.path), shape))
            if len(path) == 1:  # else of a module inside
                self.made.setdefault(names, []).append(Made(module, shape, equation))

    def of(self, names: Names) -> list[Made]:
        """Who made a parameter: those that saw it as one layer has it."""
        seen = self.made.get(names, [])
        rank = min((len(one.shape) for one in seen), default=0)
        seen = [one for one in seen if len(one.shape) == rank]
        # Some methods of an Einsum are not told its equation.
        told = [one for one in seen if one.equation is not None]
        return told or seen

    def together(self, names: Names, layer: Shape) -> int:
        """How many names lead to the outermost module that saw one layer's shape.

        What is stacked together with the parameter, is stacked around that module.
        """
        depths = (depth for depth, s in self._seen.get(names, ()) if s == layer)
        return min(depths, default=len(names) - 1)


def leaves_of_linen(
    module: nn.Module, args: Any, kwargs: Any, rngs: Any
) -> tuple[Any, list[ModelLeaf]]:
    """The parameters as shapes, and each of them in their order."""
    watch = Watch()
    with nn.intercept_methods(watch):
        variables = _abstractly(module, args, kwargs, rngs)
    params = variables.get("params", {})
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)
    return params, [_leaf(path, nn.unbox(value), watch) for path, value in flat]


def _abstractly(module: nn.Module, args: Any, kwargs: Any, rngs: Any) -> Any:
    """What `module.init` would return, as shapes: no memory, no products."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    # Flags and numbers stay as they are: modules branch on them.
    arrays = {
        i: leaf
        for i, leaf in enumerate(leaves)
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    }

    def init(rngs: Any, arrays: dict[int, Any]) -> Any:
        whole = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(structure, whole)
        return module.init(rngs, *args, **kwargs)

    return jax.eval_shape(init, rngs, arrays)


def _leaf(path: Any, value: Any, watch: Watch) -> ModelLeaf:
    names = path_names(path)
    around = [watch.modules.get(names[:n], []) for n in range(len(names))]
    parts = tuple(part for name in names for part in name.split("/"))
    seen = watch.of(parts)
    declared = [
        _declared(one, names[-1], watch.modules.get(one.module.path[:-1], []))
        for one in seen
    ]
    modules = [module for at_path in around for module in at_path]
    spoken = [
        key
        for key, name, holders in zip(path, names, around, strict=True)
        if name != "layer_instance"
        or not any(isinstance(holder, _WRAPPERS) for holder in holders)
    ]
    return ModelLeaf(
        path=path,
        aliases=(),
        shape=jnp.shape(value),
        dtype=value.dtype,
        owner=type(modules[-1]).__name__,
        modules=tuple(modules),
        declared=tuple(one for one in declared if one is not None),
        layer=seen[0].shape if len({one.shape for one in seen}) == 1 else None,
        spoken=(tuple(spoken),),
        together=watch.together(parts, seen[0].shape) if seen else len(names) - 1,
    )


def _equation(module: nn.Module, method: str, args: Any, kwargs: Any) -> str | None:
    """The equation that an Einsum has, or is called with; None in other methods."""
    if not isinstance(module, nn.Einsum):
        return None
    if module.einsum_str is not None or method != "__call__":
        return module.einsum_str
    given = kwargs.get("einsum_str", args[1] if len(args) > 1 else None)
    return given if isinstance(given, str) else None  # a subclass may take others


def _declared(one: Made, name: str, around: list[nn.Module]) -> Declared | None:
    """What a layer says of its parameter of that name; None if it is not known."""
    layer, shape = one.module, one.shape
    if isinstance(layer, nn.Embed) and name == "embedding":
        return Declared(is_embedding=True, shape=shape)
    if isinstance(layer, nn.WeightNorm) and name.endswith("/scale"):
        return Declared(shape=shape)
    if any(name == vector and isinstance(layer, c) for vector, c in _VECTORS):
        return Declared(shape=shape)
    if not isinstance(layer, _KERNELS):
        return None
    if name == "bias":
        return Declared(shape=shape)
    if name != "kernel":
        return None
    try:
        _check_shape(layer, shape)
        return Declared(_kernel(one, around), shape)
    except UndecidedLeafError as reason:
        return Declared(shape=shape, problem=str(reason))


_KERNELS = (
    nn.Dense,
    DenseParams,
    nn.DenseGeneral,
    nn.Einsum,
    nn.Conv,
    nn.ConvLocal,
    nn.ConvTranspose,
)


def _check_shape(layer: Any, shape: Shape) -> None:
    """Refuses a kernel that a subclass makes in another shape than the layer's."""
    expected = _configured(layer)
    if len(expected) != len(shape) or any(
        length not in (None, found)
        for length, found in zip(expected, shape, strict=True)
    ):
        lengths = ", ".join("any" if n is None else str(n) for n in expected)
        raise UndecidedLeafError(
            f"one layer's would be ({lengths}) by its configuration, and is {shape}"
        )


def _configured(layer: Any) -> Lengths:
    """The shape of a kernel that a layer's configuration implies.

    The inputs' lengths come from the calls alone.
    """
    if isinstance(layer, nn.DenseGeneral):
        inputs = _count(layer.batch_dims) + _count(layer.axis)
        return (None,) * inputs + _as_tuple(layer.features)
    if isinstance(layer, nn.Einsum):
        return tuple(layer.shape)
    if isinstance(layer, nn.ConvLocal):
        return (None,) * (_count(layer.kernel_size) + 1) + (layer.features,)
    if isinstance(layer, nn.ConvTranspose) and layer.transpose_kernel:
        return (*_as_tuple(layer.kernel_size), layer.features, None)
    if isinstance(layer, (nn.Conv, nn.ConvTranspose)):
        return (*_as_tuple(layer.kernel_size), None, layer.features)
    return (None, layer.features)


def _kernel(one: Made, around: list[nn.Module]) -> MatrixAxes | None:
    """The axes of a layer's kernel."""
    layer: Any = one.module
    if isinstance(layer, nn.DenseGeneral):
        batch, inputs, outputs = map(
            _count, (layer.batch_dims, layer.axis, layer.features)
        )
        return general(batch, inputs, outputs)
    if isinstance(layer, nn.Einsum):
        if one.equation is None:
            raise UndecidedLeafError("no call tells its equation")
        return einsum(one.equation)
    if isinstance(layer, nn.ConvLocal):
        return local_convolution(len(one.shape))
    if isinstance(layer, nn.ConvTranspose) and layer.transpose_kernel:
        return convolution(one.shape, inputs=-1, outputs=-2)
    if isinstance(layer, (nn.Conv, nn.ConvTranspose)):
        groups = getattr(layer, "feature_group_count", 1)
        axes = convolution(one.shape, parts=groups)
        return _with_gates(axes, layer, around)
    return DENSE


def _with_gates(
    axes: MatrixAxes | None, layer: nn.Module, around: list[nn.Module]
) -> MatrixAxes | None:
    """Of a convolutional LSTM, four gates side by side."""
    cells = [module for module in around if isinstance(module, nn.ConvLSTMCell)]
    if not cells or layer.name not in ("ih", "hh") or axes is None:
        return axes
    return side_by_side(axes, 4, layer.features)


def _count(value: Any) -> int:
    return len(_as_tuple(value))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
