"""Docstrings as the reference shows them: with blocks of code, and all arguments.

In the sources, equations are indented by two spaces and examples begin with >>>, as
help() shows them well; Markdown would make running text of the one and quotations of
the other. And published recipes have signatures at run time alone (_presets.py).
"""

import importlib
import inspect
import re
from typing import Any

import griffe


class Documented(griffe.Extension):
    """Changes every object as it is read."""

    def on_function_instance(self, *, func: griffe.Function, **others: Any) -> None:
        if func.parent is None or not func.parent.is_module:
            return  # a method
        module = importlib.import_module(func.parent.path)
        function = getattr(module, func.name, None)
        if "__signature__" in getattr(function, "__dict__", {}):
            func.parameters = _parameters(inspect.signature(function))
            func.docstring = griffe.Docstring(inspect.getdoc(function) or "")
            func.docstring.value = fenced(func.docstring.value)

    def on_instance(self, *, obj: griffe.Object, **others: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def _parameters(signature: inspect.Signature) -> griffe.Parameters:
    return griffe.Parameters(
        *(
            griffe.Parameter(
                one.name,
                kind=griffe.ParameterKind(one.kind.description),
                default=None if one.default is one.empty else repr(one.default),
            )
            for one in signature.parameters.values()
        )
    )


def fenced(docstring: str) -> str:
    """A docstring whose equations and examples are fenced blocks."""
    return "\n\n".join(map(_paragraph, re.split(r"\n{2,}", docstring)))


def _paragraph(text: str) -> str:
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    if text.startswith("  "):
        return f"```text\n{text}\n```"
    return text
