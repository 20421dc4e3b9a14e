"""Recipes as tables of values: a recipe's arguments with other defaults."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import optax

from optax_muon._common import Common

Recipe = Callable[..., optax.GradientTransformationExtraArgs]


def preset(
    base: Recipe, *, without: tuple[str, ...] = (), **defaults: Any
) -> Callable[[Recipe], Recipe]:
    """Give a function the signature of the recipe `base`, with other defaults.

    The function takes `**arguments`: all of `base`'s but those in `without`; if its
    first is `common`, those that make a `Common` come in that. Keyword arguments of its
    own come last. `optax.inject_hyperparams` reads signatures, so no
    default may be a function: it would take it for a schedule.
    """
    inherited = inspect.signature(base).parameters
    unknown = (set(without) | set(defaults)) - set(inherited)
    assert not unknown, unknown

    def decorate(function: Recipe) -> Recipe:
        parameters = inspect.signature(function).parameters
        gathered = _with_common if "common" in parameters else dict
        own = [
            parameter
            for parameter in parameters.values()
            if parameter.kind != parameter.VAR_KEYWORD
            and parameter.name not in {"common", *inherited}
        ]
        signature = inspect.Signature(
            [
                parameter.replace(default=defaults.get(name, parameter.default))
                for name, parameter in inherited.items()
                if name not in without
            ]
            + own,
            return_annotation=optax.GradientTransformationExtraArgs,
        )

        @functools.wraps(function)
        def recipe(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(**gathered(bound.arguments))

        # What help() shows, and inject_hyperparams reads.
        vars(recipe)["__signature__"] = signature
        recipe.__doc__ = _documented(function, base, without, defaults)
        return recipe

    return decorate


def _with_common(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, those that recipes have in common as one."""
    fields = {field.name for field in dataclasses.fields(Common)}
    common = {name: value for name, value in arguments.items() if name in fields}
    others = {name: arguments[name] for name in arguments if name not in fields}
    return {"common": Common(**common), **others}


def _documented(
    function: Recipe, base: Recipe, without: tuple[str, ...], defaults: dict[str, Any]
) -> str:
    """The function's docstring, and what its signature has from `base`."""
    doc = inspect.cleandoc(function.__doc__ or "")
    values = ", ".join(f"{name}={value!r}" for name, value in defaults.items())
    others = f" but for {', '.join(without)}" if without else ""
    return (
        f"{doc}\n\nAll other arguments, returns and errors are those of "
        f"`{base.__name__}`{others}; other than there, by default {values}.\n"
    )
