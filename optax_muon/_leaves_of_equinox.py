"""The parameters of an Equinox model, each with what the layer that holds it says.

Names do not tell them: every layer calls its array `weight`, [out, in] here, a table of
embeddings or a norm's scale there. Imports Equinox: to be imported only where it is
needed.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import nn
from jax.extend.core import Var

from optax_muon._layers import Declared, convolution, side_by_side
from optax_muon._matrix_axes import MatrixAxes, Path
from optax_muon._model_leaves import ModelLeaf, agreed

Names = tuple[str, ...]

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
    """Where an array is read, or another leaf lies.

    Attributes:
      names: of fields, keys, and the numbers of items that lead there.
      array: itself, or its shape.
      around: the modules around it, with their names, the innermost last.
      field: its names in that one.
      spoken: the names without those that wrappers of layers put in.
    """

    names: Names
    array: Any
    around: tuple[tuple[Names, eqx.Module], ...]
    field: Names
    spoken: Names

    @property
    def declared(self) -> Declared | None:
        """What its layer says of it; None if that is not known."""
        return _declared(self.around[-1][1], self.field) if self.around else None


class _Tie(NamedTuple):
    """Another place where an array is read; or something that is computed from it."""

    place: _Place
    is_same: bool


def leaves_of_equinox(model: Any) -> list[tuple[Names, ModelLeaf]]:
    """Each inexact array, with its names.

    Raises:
      ValueError: a module `eqx.nn.Shared` cannot be called.
    """
    leaves = list(_places(model))
    modules = dict(entry for leaf in leaves for entry in leaf.around)
    places = [leaf for leaf in leaves if is_parameter(leaf.array)]
    return [
        (place.names, _leaf(place, tied, modules))
        for place, tied in zip(places, _ties(model, places), strict=True)
    ]


def _places(
    tree: Any,
    names: Names = (),
    around: tuple[tuple[Names, eqx.Module], ...] = (),
    spoken: Names = (),
    *,
    called: bool = False,
) -> Iterator[_Place]:
    """Each leaf of a tree; if `called`, arrays also where Shared puts them again."""
    inside = tree
    if isinstance(tree, eqx.Module):
        around = (*around, (names, tree))
    if isinstance(tree, nn.Shared) and called:
        inside = {"pytree": _call(tree, names)}
    flat, _ = jax.tree_util.tree_flatten_with_path(
        inside, is_leaf=lambda x: x is not inside and isinstance(x, eqx.Module)
    )
    for path, child in flat:
        # All of them: path_names drops a last `value`, which may be a field here.
        field = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        wraps = any(
            isinstance(tree, kind) and field[:1] == (name,) for kind, name in _WRAPPERS
        )
        said = spoken + (field[1:] if wraps else field)
        if isinstance(child, eqx.Module):
            yield from _places(child, names + field, around, said, called=called)
        else:
            yield _Place(names + field, child, around, field, said)


def is_parameter(x: Any) -> bool:
    """As `eqx.is_inexact_array`, but of shapes as well."""
    is_shape = isinstance(x, jax.ShapeDtypeStruct)
    return eqx.is_inexact_array(x) or (
        is_shape and jnp.issubdtype(x.dtype, jnp.inexact)
    )


def _call(shared: nn.Shared, names: Names) -> Any:
    try:
        return shared()
    except Exception as error:
        raise ValueError(
            f"axes_from_equinox: calling the eqx.nn.Shared at {'/'.join(names)!r}, to "
            f"see what it ties, raised {type(error).__name__}: {error}\nPass the model "
            "itself, not eqx.filter of it; for a stack of models, whose Shared has a "
            "function for one of them, give matrix_axes a tree of your own."
        ) from error


def _ties(model: Any, places: list[_Place]) -> list[list[_Tie]]:
    """For each array the other places where the model reads it.

    Shared keeps an array in one place and, when called, puts it, or what a function of
    the user makes of it, into others. What is made of what, a trace tells.
    """
    ties: list[list[_Tie]] = [[] for _ in places]
    modules = (module for place in places for _, module in place.around)
    if not any(isinstance(module, nn.Shared) for module in modules):
        return ties
    arrays, rest = eqx.partition(model, is_parameter)
    read: list[_Place] = []

    def look(arrays: Any) -> list[Any]:
        leaves = _places(eqx.combine(arrays, rest), called=True)
        read[:] = [leaf for leaf in leaves if is_parameter(leaf.array)]
        return [place.array for place in read]

    jaxpr = jax.make_jaxpr(look)(arrays).jaxpr
    sources = {variable: {i} for i, variable in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        used = [sources.get(x, set()) for x in equation.invars if isinstance(x, Var)]
        sources |= dict.fromkeys(equation.outvars, set().union(*used))
    for place, variable in zip(read, jaxpr.outvars, strict=True):
        made_of = sources.get(variable, ()) if isinstance(variable, Var) else ()
        for i in made_of:
            if place.names != places[i].names:
                ties[i].append(_Tie(place, variable is jaxpr.invars[i]))
    return ties


def _leaf(
    place: _Place, ties: list[_Tie], modules: dict[Names, eqx.Module]
) -> ModelLeaf:
    said = [place.declared, *map(_declared_by_tie, ties)]
    declared, layer = agreed(list(dict.fromkeys(said)))
    others = [tie.place for tie in ties]
    around = [module for _, module in place.around]
    # Those that a trace saw are other objects than the model's.
    around += [modules.get(*entry) for other in others for entry in other.around]
    return ModelLeaf(
        path=_keys(place.names),
        aliases=tuple(_keys(other.names) for other in others),
        shape=place.array.shape,
        dtype=place.array.dtype,
        owner=type(place.around[-1][1]).__name__ if place.around else "no module",
        modules=tuple(around),
        declared=declared,
        layer=layer,
        spoken=tuple(_keys(x.spoken) for x in (place, *others)),
        # Nothing in a model tells how far up its modules were stacked together.
        together=len(place.names) - 1,
    )


def _declared_by_tie(tie: _Tie) -> Declared | None:
    said = tie.place.declared
    if tie.is_same or said is None or said.is_embedding:
        return said
    return Declared(problem="a layer reads what eqx.nn.Shared makes of it")


def _keys(names: Names) -> Path:
    return tuple(jax.tree_util.DictKey(name) for name in names)


def _declared(layer: Any, field: Names) -> Declared | None:
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
