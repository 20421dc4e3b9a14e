"""The rivals: AdamW, also with a rate for each kind of parameter, and others' Muon."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import machine
import optax_muon
from contestants import (
    SHARED,
    START_AT_JORDANS_SCALE,
    START_WITHOUT_MOMENTUM,
    Contestant,
    Rate,
    recipe,
)
from gpt_example import recipes


def adamw(settings: Mapping[str, Any], rate: Rate) -> optax.GradientTransformation:
    """As in the example, but b1 is a setting: hidden matrices alone decay."""
    return optax.adamw(
        rate(settings["learning_rate"]),
        b1=settings["momentum"],
        b2=recipes.ADAM_B2,
        weight_decay=settings["weight_decay"],
        mask=recipes.hidden_matrices,
    )


def adamw_split(
    settings: Mapping[str, Any], rate: Rate
) -> optax.GradientTransformation:
    """One rate for the hidden matrices, another for the rest, as Muon has."""
    rest = settings | {
        "learning_rate": settings["rest_learning_rate"],
        "weight_decay": 0.0,
    }
    return optax.partition(
        {True: adamw(settings, rate), False: adamw(rest, rate)},
        recipes.hidden_matrices,
    )


def dimension_numbers(kind: Callable[..., Any]) -> Callable[[Any], Any]:
    """A function params -> this library's routing, in the peers' words for it."""

    def of_leaf(path: Any, leaf: Any) -> Any:
        axes = optax_muon.flax_matrix_axes(path, leaf)
        return axes and kind(reduction_axis=axes.fan_in, output_axis=axes.fan_out)

    return lambda params: jax.tree_util.tree_map_with_path(of_leaf, params)


ADAMW = Contestant(
    "adamw",
    "optax.adamw",
    recipes.TUNED["adamw"] | {"momentum": recipes.ADAM_B1},
    adamw,
    everywhere=True,
)
SPLIT = Contestant(
    "adamw_split",
    "optax.adamw, one rate for hidden matrices and one for the rest",
    recipes.TUNED["adamw_split"] | {"momentum": recipes.ADAM_B1},
    adamw_split,
    everywhere=True,
)
contrib = functools.partial(
    optax.contrib.muon,
    muon_weight_dimension_numbers=dimension_numbers(optax.contrib.MuonDimensionNumbers),
    **SHARED,
)
CONTRIB = recipe(
    "optax_contrib",
    "optax.contrib.muon on the same matrices",
    contrib,
    START_AT_JORDANS_SCALE,
    momentum="beta",
    everywhere=True,
)
CONTRIB_95 = recipe(
    "optax_contrib_95",
    "optax.contrib.muon with its own beta, 0.95, and the rest tuned",
    contrib,
    START_WITHOUT_MOMENTUM,
)


def absent() -> dict[str, str]:
    """Peers that cannot run here, and why."""
    version = machine.version("rollfast")
    if version is None:
        return {"rollfast": "not installed; it needs Python 3.12: pip install rollfast"}
    if not hasattr(importlib.import_module("rollfast"), "muon"):
        return {"rollfast": f"rollfast {version} has no Muon; 1.3.0 has (Python 3.12)"}
    return {}


def rollfast_muon() -> Contestant:
    """github.com/clementpoiret/rollfast: its arguments are those of optax.contrib."""
    rollfast = importlib.import_module("rollfast")
    function = functools.partial(
        rollfast.muon,
        muon_weight_dimension_numbers=dimension_numbers(rollfast.MuonDimensionNumbers),
        **SHARED,
    )
    about = f"rollfast.muon {machine.version('rollfast')} on the same matrices"
    return recipe("rollfast", about, function, START_AT_JORDANS_SCALE, momentum="beta")
