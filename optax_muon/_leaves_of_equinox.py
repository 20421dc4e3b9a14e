"""The parameters of an Equinox model, each with what the layer that holds it says.

Names do not tell them: every layer calls its array `weight`, [out, in] here, a table of
embeddings or a norm's scale there. Imports Equinox: to be imported only where it is
needed.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import nn

from optax_muon._layers import Declared, convolution, side_by_side
from optax_muon._matrix_axes import MatrixAxes, Path
from optax_muon._model_leaves import ModelLeaf, agreed

_DENSE = MatrixAxes(1, 0)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm)
# Arrays that are AdamW's, by the classes that hold them and the fields.
_VECTORS: tuple[tuple[tuple[type, ...], tuple[str, ...]], ...] = (
    (_NORMS, ("weight", "bias")),
    ((nn.PReLU,), ("negative_slope",)),
    ((nn.WeightNorm,), ("g",)),
)
# Cells, and how many gates lie side by side in their arrays.
_GATES = ((nn.LSTMCell, 4), (nn.GRUCell, 3))
# What wraps a layer, and under which name: it says nothing of the layer's role.
_WRAPPERS: tuple[tuple[type, str], ...] = (
    (nn.WeightNorm, "layer"),
    (nn.SpectralNorm, "layer"),
    (nn.Shared, "pytree"),
)


@dataclasses.dataclass(frozen=True)
class _Place:
    """An array in a tree, and the modules around it.

    Attributes:
      path: of the array.
      array: itself, or its shape.
      modules: those around it, the innermost last.
      field: its names in that one.
      spoken: the path without the names that wrappers of layers put in.
    """

    path: Path
    array: Any
    modules: tuple[eqx.Module, ...]
    field: tuple[str, ...]
    spoken: Path

    @property
    def declared(self) -> Declared | None:
        """What its layer says of it; None if that is not known."""
        return _declared(self.modules[-1], self.field) if self.modules else None


def leaves_of_equinox(model: Any) -> list[tuple[tuple[str, ...], ModelLeaf]]:
    """Each inexact array, with its names: fields, keys, and the numbers of items."""
    ties: dict[Path, list[_Place]] = {}
    places = list(_places(model, ties=ties))
    return [(_names(x.path), _leaf(x, ties.get(x.path, []))) for x in places]


def _names(path: Path) -> tuple[str, ...]:
    """With a last `value`, which may be a field here and is NNX's to path_names."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _places(
    tree: Any,
    path: Path = (),
    modules: tuple[eqx.Module, ...] = (),
    spoken: Path = (),
    *,
    ties: dict[Path, list[_Place]] | None = None,
) -> Iterator[_Place]:
    """Each inexact array of a tree; `ties` takes where else those of Shared are."""
    if isinstance(tree, eqx.Module):
        modules = (*modules, tree)
    if isinstance(tree, nn.Shared) and ties is not None:
        for below, others in _ties(tree).items():
            ties.setdefault(path + below, []).extend(others)
    flat, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is not tree and isinstance(x, eqx.Module)
    )
    for below, child in flat:
        field = _names(below)
        wraps = any(
            isinstance(tree, kind) and field[:1] == (name,) for kind, name in _WRAPPERS
        )
        said = spoken + (below[1:] if wraps else below)
        if isinstance(child, eqx.Module):
            yield from _places(child, path + below, modules, said, ties=ties)
        elif is_parameter(child):
            yield _Place(path + below, child, modules, field, said)


def is_parameter(x: Any) -> bool:
    """As `eqx.is_inexact_array`, but of shapes as well."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def _ties(shared: nn.Shared) -> dict[Path, list[_Place]]:
    """For the paths to arrays in a Shared, where the model reads them again.

    It keeps an array in one place and puts it into all when called; which is which,
    only the very objects tell. While jax traces, shapes are objects of that kind too.
    """
    arrays, rest = eqx.partition(shared, is_parameter)
    found: dict[Path, list[_Place]] = {}

    def look(arrays: Any) -> None:
        whole: Any = eqx.combine(arrays, rest)
        kept = {id(place.array): place.path for place in _places(whole)}
        for place in _places(whole()):
            if id(place.array) in kept:
                found.setdefault(kept[id(place.array)], []).append(place)

    jax.eval_shape(look, arrays)
    return found


def _leaf(place: _Place, ties: list[_Place]) -> ModelLeaf:
    declared, layer = agreed([x.declared for x in (place, *ties)])
    return ModelLeaf(
        path=place.path,
        aliases=(),
        shape=place.array.shape,
        dtype=place.array.dtype,
        owner=type(place.modules[-1]).__name__ if place.modules else "no module",
        modules=place.modules,
        declared=declared,
        layer=layer,
        spoken=(place.spoken, *(tie.spoken for tie in ties)),
        # Nothing in a model tells how far up its modules were stacked together.
        together=len(place.path) - 1,
    )


def _declared(layer: Any, field: tuple[str, ...]) -> Declared | None:
    """What a layer says of its array of these names; None if it is not known."""
    if isinstance(layer, nn.StateIndex):
        return Declared()  # running means, and the vectors of SpectralNorm
    [name] = field if len(field) == 1 else [""]  # else of no array that it made
    if isinstance(layer, nn.Embedding) and name == "weight":
        return Declared(is_embedding=True)
    if any(isinstance(layer, kinds) and name in names for kinds, names in _VECTORS):
        return Declared()
    if isinstance(layer, nn.Linear):
        sides = (layer.out_features, layer.in_features)
        shape = tuple(1 if side == "scalar" else side for side in sides)
        return _of_layer(name, {"weight": Declared(_DENSE, shape)}, shape[:1])
    if isinstance(layer, (nn.Conv, nn.ConvTranspose)):
        inputs = layer.in_channels // layer.groups
        shape = (layer.out_channels, inputs, *layer.kernel_size)
        axes = convolution(shape, inputs=1, outputs=0, parts=layer.groups)
        bias = (layer.out_channels, *(1,) * layer.num_spatial_dims)
        return _of_layer(name, {"weight": Declared(axes, shape)}, bias)
    for kind, gates in _GATES:
        if isinstance(layer, kind):
            return _of_cell(layer, name, gates)
    return None


def _of_cell(cell: Any, name: str, gates: int) -> Declared | None:
    """The gates lie side by side along the outputs."""
    outputs = gates * cell.hidden_size
    axes = side_by_side(_DENSE, gates, outputs)
    if name == "bias_n":  # of one gate
        return Declared(shape=(cell.hidden_size,))
    inputs = {"weight_ih": cell.input_size, "weight_hh": cell.hidden_size}
    kernels = {key: Declared(axes, (outputs, size)) for key, size in inputs.items()}
    return _of_layer(name, kernels, (outputs,))


def _of_layer(
    name: str, kernels: dict[str, Declared], bias: tuple[int, ...]
) -> Declared | None:
    return Declared(shape=bias) if name == "bias" else kernels.get(name)
