"""The field: all that compete, by name.

To add one, add it to `variants` or `competitors`; nothing else has to know. One that is
changed needs a new name, or `convergence.py --forget NAME`: its rows are another's.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

import optax_muon
from contestants import (
    LADDERS,
    MOMENTUM,
    SHARED,
    START,
    START_AT_JORDANS_SCALE,
    START_WITHOUT_MOMENTUM,
    Contestant,
    Rate,
    recipe,
)
from rivals import ADAMW, CONTRIB, CONTRIB_95, SPLIT, absent, rollfast_muon

muon = functools.partial(optax_muon.muon, **SHARED)
DEFAULT = recipe("muon", "muon()", muon, everywhere=True)


def heads_apart(path: Any, leaf: Any) -> optax_muon.MatrixAxes | None:
    """The default rule, but every head of an attention is a matrix of its own."""
    axes = optax_muon.flax_matrix_axes(path, leaf)
    if axes == optax_muon.MatrixAxes(0, (1, 2)):
        return optax_muon.MatrixAxes(0, 2)
    return (
        optax_muon.MatrixAxes(1, 2)
        if axes == optax_muon.MatrixAxes((0, 1), 2)
        else axes
    )


def variants() -> tuple[Contestant, ...]:
    """The default with a part changed."""

    def variant(name: str, about: str, **others: Any) -> Contestant:
        return recipe(name, f"muon({about})", functools.partial(muon, **others))

    return (
        variant(
            "normalize_neurons",
            "normalizer=normalize_neurons()",
            normalizer=optax_muon.normalize_neurons(),
        ),
        variant(
            "snap_frobenius",
            "normalizer=snap_frobenius()",
            normalizer=optax_muon.snap_frobenius(),
        ),
        variant(
            "muoneq",
            "preconditioner=equilibrate()",
            preconditioner=optax_muon.equilibrate(),
        ),
        variant(
            "adamuon",
            "AdaMuon: heavy ball, signs before, entries normalized after",
            momentum_form="heavy_ball",
            nesterov=False,
            preconditioner=optax.scale_by_sign(),
            normalizer=optax.chain(
                optax_muon.normalize_entries(), optax_muon.snap_frobenius()
            ),
        ),
        variant("cautious", "cautious=True", cautious=True),
        variant(
            "heads_apart",
            "matrix_axes: a matrix for each head",
            matrix_axes=heads_apart,
        ),
        DION2,
        DUAL_NORM,
    )


# The values of Adam that are not in question, in words of recipes without its decay.
WITHOUT_DECAY = {key: SHARED[key] for key in ("adam_b1", "adam_b2")}


def published() -> tuple[Contestant, ...]:
    """Recipes, with Adam's part as all others have it."""

    def shared(
        name: str, start: Mapping[str, float] = START, **others: Any
    ) -> Contestant:
        function = functools.partial(getattr(optax_muon, name), **SHARED)
        return recipe(name, f"{name}()", function, start, **others)

    return (
        shared("keller_jordan", START_AT_JORDANS_SCALE),
        shared("moonlight"),
        shared("normuon", START_AT_JORDANS_SCALE),
        shared("deepseek_v4"),
        shared("muon_clip", clips=True),
        recipe(
            "muon_hyperball",
            "muon_hyperball()",
            functools.partial(optax_muon.muon_hyperball, **WITHOUT_DECAY),
            {
                "learning_rate": 0.064,
                "rest_learning_rate": 0.032,
                "momentum": MOMENTUM,
            },
        ),
        recipe(
            "soap_muon",
            "soap_muon(frequency=10)",
            functools.partial(optax_muon.soap_muon, frequency=10, **SHARED),
            START_AT_JORDANS_SCALE,
        ),
        recipe(
            "speedrun",
            "speedrun(), its decay on matrices alone and Adam's b1 0.9; its momentum "
            "rises by itself, to 0.95 at the end of 300 steps",
            functools.partial(optax_muon.speedrun, **SHARED),
            START_WITHOUT_MOMENTUM | {"weight_decay": 3.0},
            ladders=LADDERS | {"weight_decay": (0.0, 1.0, 3.0, 10.0, 30.0)},
        ),
        SCION,
    )


def scion(settings: Mapping[str, Any], rate: Rate) -> optax.GradientTransformation:
    """Its decay is its rate; radii of embedding, head and vectors take decay's place.

    They keep the ratio of the rule's defaults.
    """
    balls = optax_muon.flax_norm_balls()

    def scaled(path: Any, leaf: Any, step: jax.Array) -> jax.Array:
        is_hidden = balls(path, leaf).norm == "spectral"
        return step if is_hidden else settings["others"] * step

    def steps(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(scaled, params, updates)

    momentum = optax_muon.accumulate_momentum(settings["momentum"], nesterov=False)
    return optax.chain(
        momentum,
        optax_muon.scale_by_lmo(
            balls, orthogonalizer=optax_muon.NewtonSchulz("keller_jordan")
        ),
        optax.stateless(steps),
        optax_muon.add_weight_decay(1.0),
        optax.scale_by_learning_rate(rate(settings["learning_rate"])),
    )


SCION = Contestant(
    "scion",
    "scion(), radii of all but hidden matrices times a setting",
    {"learning_rate": 0.001, "others": 1.0, "momentum": MOMENTUM},
    scion,
    LADDERS | {"others": tuple(2.0**k for k in range(-5, 4))},
)


def by_hand(
    settings: Mapping[str, Any], rate: Rate, *directions: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Directions of the matrices, then what `muon` does with its own; AdamW beside."""
    matrices = optax.chain(
        *directions,
        optax_muon.add_weight_decay(settings["weight_decay"]),
        optax.scale_by_learning_rate(rate(settings["learning_rate"])),
    )
    others = optax.adam(
        rate(settings["rest_learning_rate"]), SHARED["adam_b1"], SHARED["adam_b2"]
    )
    return optax_muon.route(matrices, others)


def dion2(settings: Mapping[str, Any], rate: Rate) -> optax.GradientTransformation:
    directions = optax_muon.scale_by_dion2(0.25, decay=settings["momentum"])
    return by_hand(settings, rate, directions, optax_muon.scale_by_shape("mup"))


def dual_norm(settings: Mapping[str, Any], rate: Rate) -> optax.GradientTransformation:
    return by_hand(
        settings,
        rate,
        optax_muon.accumulate_momentum(settings["momentum"]),
        optax_muon.scale_by_dual_norm(optax_muon.orthogonalize_updates()),
    )


DION2 = Contestant(
    "dion2", "scale_by_dion2(0.25), scale mup", START_AT_JORDANS_SCALE, dion2
)
# A gradient's nuclear norm is its scale, about 1 at first on this task.
DUAL_NORM = Contestant(
    "dual_norm", "scale_by_dual_norm(orthogonalize_updates())", START, dual_norm
)


RIVALS = (ADAMW, SPLIT, CONTRIB, CONTRIB_95)


@functools.cache
def competitors() -> dict[str, Contestant]:
    """All that can run here."""
    peers = () if absent() else (rollfast_muon(),)
    found = (DEFAULT, *published(), *variants(), *RIVALS, *peers)
    return {one.name: one for one in found}
