"""What the user decides of a model's leaves: the arguments `adamw` and `others`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from optax_muon._combinators import components, unmet_by
from optax_muon._matrix_axes import MatrixAxes, Path, UndecidedLeafError, path_name
from optax_muon._rules import Rule

Choice = Any
"""A pattern of a path's components, a class of modules, or a module itself."""


class ModelChoices:
    """`adamw` and `others` of one call, and which of their entries met a leaf.

    Args:
      adamw: choices, or one of them.
      others: a rule (path, leaf) -> MatrixAxes | None, a dictionary from choices to
        MatrixAxes | None, or None.
      module: the class of modules; None where those in the argument are no use.
      classes: whether classes of modules are of use.
    """

    def __init__(
        self, adamw: Any, others: Any, module: type | None, *, classes: bool = True
    ) -> None:
        one = isinstance(adamw, str) or not isinstance(adamw, Sequence)
        one = one or (module is not None and isinstance(adamw, module))  # a list of NNX
        self._adamw = [adamw] if one else list(adamw)
        is_rule = callable(others) and not isinstance(others, type)
        self._rule: Rule | None = others if is_rule else None
        self._others = {} if is_rule or others is None else others
        for choice in self._adamw:
            _check_choice("adamw", choice, module, classes)
        _check_others(self._others, module, classes)
        self._met: list[tuple[str, Choice]] = []
        self._names: list[str] = []  # of all leaves

    def sends_to_adamw(self, paths: tuple[Path, ...], modules: tuple[Any, ...]) -> bool:
        """Whether `adamw` names the leaf, by any of its paths."""
        names = _joined(paths)
        self._names += names
        meeting = [choice for choice in self._adamw if _meets(choice, names, modules)]
        self._met += [("adamw", choice) for choice in meeting]
        return bool(meeting)

    def of_others(
        self,
        paths: tuple[Path, ...],
        leaf: jax.ShapeDtypeStruct,
        modules: tuple[Any, ...],
        reason: UndecidedLeafError,
    ) -> MatrixAxes | None:
        """What `others` says of a leaf that the model says nothing of, for a reason.

        Raises:
          UndecidedLeafError: nothing, or several things, or axes that do not fit.
        """
        names = _joined(paths)
        if self._rule is None:
            said = self._of_dictionary(names, modules)
        else:
            said = {
                _checked(self._rule(path, leaf), name)
                for path, name in zip(paths, names, strict=True)
            }
        if not said:
            raise reason
        if len(said) > 1:
            raise UndecidedLeafError(f"others says several things of it: {said}")
        (axes,) = said
        if axes is not None:
            axes.view(leaf.shape)
        return axes

    def _of_dictionary(
        self, names: list[str], modules: tuple[Any, ...]
    ) -> set[MatrixAxes | None]:
        meeting = [choice for choice in self._others if _meets(choice, names, modules)]
        self._met += [("others", choice) for choice in meeting]
        return {self._others[choice] for choice in meeting}

    def check_used(self, function: str) -> None:
        """Raise unless every choice met a leaf."""
        for complaint in self.unused(function):
            raise ValueError(complaint)

    def unused(self, function: str) -> list[str]:
        """What is to be said of choices that met no leaf: nothing if all did."""
        given = [("adamw", choice) for choice in self._adamw]
        given += [("others", choice) for choice in self._others]
        unused = [
            f"{argument}: {choice!r}"
            for argument, choice in given
            if not any(argument == a and choice is c for a, c in self._met)
        ]
        complaints = []
        if unused:
            complaints.append(
                f"{function} was given choices that meet no parameter: {unused}. "
                "Patterns are regular expressions of whole components of a path; "
                "others is asked for parameters alone that neither adamw, nor names, "
                "nor the model decide: change the tree that comes back for those."
            )
        no_match = unmet_by("others", self._rule, self._names)
        if no_match:
            complaints.append(f"{function}: {no_match.strip()}")
        return complaints


def _joined(paths: tuple[Path, ...]) -> list[str]:
    return [path_name(path) for path in paths]


def _meets(choice: Choice, names: list[str], modules: tuple[Any, ...]) -> bool:
    if isinstance(choice, str):
        return any(components(choice).search(name) for name in names)
    if isinstance(choice, type):
        return any(isinstance(module, choice) for module in modules)
    return any(module is choice for module in modules)


def _check_choice(
    argument: str, choice: Choice, module: type | None, classes: bool
) -> None:
    if isinstance(choice, str):
        components(choice)  # refuses what is no regular expression
        return
    if isinstance(choice, type) and classes:
        return
    if module is None or not isinstance(choice, module):
        kinds = ["a pattern of a path"]
        kinds += ["a class of modules"] if classes else []
        kinds += ["a module of the model"] if module is not None else []
        raise TypeError(
            f"{argument} holds {choice!r}; each entry must be {' or '.join(kinds)}."
        )


def _check_others(others: Any, module: type | None, classes: bool) -> None:
    if not isinstance(others, Mapping):
        kinds = "pattern of a path, or class of modules" if classes else "pattern"
        raise TypeError(
            f"others={others!r} must be a rule (path, leaf) -> MatrixAxes | None, or a "
            f"dictionary of {{{kinds}: MatrixAxes | None}}."
        )
    for choice, axes in others.items():
        _check_choice("others", choice, module, classes)
        _checked(axes, choice)


def _checked(axes: Any, key: Any) -> MatrixAxes | None:
    if axes is not None and type(axes) is not MatrixAxes:
        raise TypeError(
            f"others gave {axes!r} for {key!r}; it must be a MatrixAxes, or None for "
            "AdamW."
        )
    return axes
