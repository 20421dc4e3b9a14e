"""From what a model's modules say of its leaves to a decision for each, or one error.

`_leaves_of_nnx`, `_leaves_of_linen` and `_leaves_of_equinox` find the leaves,
`_model_choices` holds what the user decides.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from optax_muon._layers import Declared
from optax_muon._matrix_axes import (
    MatrixAxes,
    Path,
    UndecidedLeafError,
    path_name,
    path_names,
)
from optax_muon._model_choices import ModelChoices
from optax_muon._rules import flax_role
from optax_muon._stack_axes import Axes, Lengths, Stacked, stacked_axes, without


@dataclasses.dataclass(frozen=True)
class ModelLeaf:
    """A parameter of a model and the modules that hold it.

    Attributes:
      path: its key path among the parameters.
      aliases: other paths to it, if modules share it.
      shape, dtype: of the whole leaf; a shape of None if it is no array.
      owner: the name of the class of its module.
      modules: its module and those around it, as objects.
      declared: what layers that are known say of it: several if they share it.
      layer: its shape without stacked axes, if that is known.
      spoken: all its paths without the names that wrappers of layers put in.
      together: so many of its names lead to the outermost module around it that is
        known to be stacked as a whole, if it is stacked.
    """

    path: Path
    aliases: tuple[Path, ...]
    shape: tuple[int, ...] | None
    dtype: np.dtype | None
    owner: str
    modules: tuple[Any, ...]
    declared: tuple[Declared, ...]
    layer: Lengths | None
    spoken: tuple[Path, ...]
    together: int

    @property
    def name(self) -> str:
        """Its names joined by "/"."""
        return path_name(self.path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All paths to it."""
        return (self.path, *self.aliases)


def agreed(
    said: Sequence[Declared | None],
) -> tuple[tuple[Declared, ...], Lengths | None]:
    """What all that hold a leaf say of it, None where one says nothing; and its shape.

    One that says nothing contradicts those that do: it may read the leaf in any way.
    """
    declared = tuple(one for one in said if one is not None)
    shapes = {one.shape for one in declared if one.shape is not None}
    if declared and None in said:
        declared += (Declared(problem="shared with a module that is no known layer"),)
    return declared, shapes.pop() if len(shapes) == 1 else None


def decide(
    leaves: Sequence[ModelLeaf], choices: ModelChoices, function: str
) -> list[MatrixAxes | None]:
    """The axes of each leaf, None for AdamW.

    Args:
      function: the public function, for messages.

    Raises:
      ValueError: lists every leaf that is undecided; or the choices that fit no leaf.
    """
    stacks = stacked_axes([_stacked(leaf) for leaf in leaves])
    found: list[MatrixAxes | None] = []
    failures = []
    for leaf, axes in zip(leaves, stacks, strict=True):
        try:
            found.append(_decision(leaf, axes, choices))
        except UndecidedLeafError as reason:
            shape = "" if leaf.shape is None else f"  {leaf.shape} {leaf.dtype}"
            failures.append(f"  {leaf.name}{shape} of {leaf.owner}: {reason}")
    if failures:
        unused = choices.unused(function)
        raise ValueError("\n".join([_undecided(function, failures), *unused]))
    choices.check_used(function)
    return found


def _stacked(leaf: ModelLeaf) -> Stacked:
    layer = None if leaf.shape is None else leaf.layer
    names = path_names(leaf.path)
    return Stacked(names, leaf.shape or (), layer, leaf.together)


def _decision(
    leaf: ModelLeaf, stacks: set[Axes], choices: ModelChoices
) -> MatrixAxes | None:
    by_choice = choices.sends_to_adamw(leaf.paths, leaf.modules)
    roles = _roles(leaf)
    if by_choice or roles - {"vector", None}:
        return None
    if roles == {"vector"} and leaf.declared:
        return None
    if leaf.shape is None:
        raise UndecidedLeafError("no array; keep each array in a variable of its own")
    try:
        return _explained(leaf, leaf.shape, stacks)
    except UndecidedLeafError as reason:
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        axes = choices.of_others(leaf.paths, shape, leaf.modules, reason)
        _check_stack(axes, leaf, shape.shape, stacks)
        return axes


def _roles(leaf: ModelLeaf) -> set[str | None]:
    """What its names say it is.

    Of a layer that is known, the layer's name tells as well: `lm_head/kernel`. A
    parameter that no layer explains, such as `head/w` or `head`, is only an embedding
    or a table of positions if its own name says so: all else would be a guess.
    """
    if leaf.declared:
        return {flax_role(path) for path in leaf.spoken}
    return {flax_role(path[-1:]) for path in leaf.spoken} - {"vector", "head"}


def _check_stack(
    axes: MatrixAxes | None,
    leaf: ModelLeaf,
    shape: tuple[int, ...],
    stacks: set[Axes],
) -> None:
    """Refuses axes of `others` that are stacked ones, which the model knows."""
    if axes is None or len(stacks) != 1:
        return
    (stack,) = stacks
    view = axes.view(shape)
    used = set(stack) & {*view.fan_in_axes, *view.fan_out_axes}
    if used:
        raise UndecidedLeafError(
            f"others gave {axes}, but axis {min(used)} is stacked: of one layer it is "
            f"{leaf.layer}; count axes on the whole stored leaf"
        )


def _explained(
    leaf: ModelLeaf, shape: tuple[int, ...], stacks: set[Axes]
) -> MatrixAxes | None:
    """What the model itself says of the leaf."""
    if not leaf.declared:
        if _is_vector(shape, stacks):
            return None
        stack = "" if stacks <= {()} else f"; of one layer it is {leaf.layer}"
        raise UndecidedLeafError(f"made by no layer that says what it is{stack}")
    if any(one.is_embedding for one in leaf.declared):
        return None
    said = {one.axes for one in leaf.declared if not one.problem}
    if said == {None} and _is_vector(shape, stacks):
        return None  # whoever else reads it
    problems = [one.problem for one in leaf.declared if one.problem]
    if problems:
        raise UndecidedLeafError("; ".join(problems))
    if len(said) > 1:
        raise UndecidedLeafError(f"layers that share it say {_joined(said)} of it")
    (axes,) = said
    return None if axes is None else _in_stack(axes, leaf, shape, stacks)


def _in_stack(
    axes: MatrixAxes, leaf: ModelLeaf, shape: tuple[int, ...], stacks: set[Axes]
) -> MatrixAxes:
    """The axes of one layer, in a leaf of stacked ones."""
    if not stacks:
        raise UndecidedLeafError(f"one layer's would be {leaf.layer}")
    outcomes = {_with_axes(axes, shape, stack) for stack in stacks}
    if len(outcomes) > 1:
        raise UndecidedLeafError(
            f"one layer's is {leaf.layer}, so the stacked axes may be any of "
            f"{_joined(stacks)}"
        )
    (outcome,) = outcomes
    return outcome


def _with_axes(axes: MatrixAxes, shape: tuple[int, ...], stack: Axes) -> MatrixAxes:
    axes.view(without(shape, stack))  # refuses axes and parts that do not fit
    for i, axis in enumerate(stack):
        axes = axes.stacked(axis, without(shape, stack[i:]))
    return axes


def _is_vector(shape: tuple[int, ...], stacks: set[Axes]) -> bool:
    """Whether at most one axis of a layer's shape is longer than 1, however stacked."""
    return all(
        sum(size > 1 for size in without(shape, stack)) <= 1 for stack in stacks or {()}
    )


def _joined(things: set[Any]) -> str:
    return " or ".join(sorted(map(str, things)))


def _undecided(function: str, failures: list[str]) -> str:
    return (
        f"{function} cannot tell what these parameters are:\n"
        + "\n".join(failures)
        + "\nPass others=, either a dictionary of {part of a path, or class of module: "
        "MatrixAxes | None} (None: AdamW), such as {'experts/w': MatrixAxes(1, 2)}; or "
        "a rule (path, leaf) -> MatrixAxes | None, such as optax_muon.flax_matrix_axes "
        "to decide by name and rank. Axes are those of the whole leaf, stacked ones "
        "included."
    )
