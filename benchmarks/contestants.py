"""A contestant: how it is built, where its search begins, and what it may change."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from gpt_example import climb, recipes

# From a peak value to its schedule over the run.
Rate = Callable[[Any], optax.Schedule]
Build = Callable[[Mapping[str, Any], Rate], optax.GradientTransformation]

RATES = tuple(5e-4 * 2.0**rung for rung in range(-5, 13))
LADDERS = {
    "learning_rate": RATES,
    "rest_learning_rate": RATES,
    "weight_decay": (0.0, 0.1, 0.3, 1.0, 3.0),
    "momentum": (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975),
}
# A search begins where the example's own ended while `muon` had momentum 0.95, or, for
# steps of another size, at the rate that makes them about as large. Jordan's scale
# is 0.3 to 0.6 of "adam_rms" on the GPT's matrices of width 64. Momentum is that of the
# best of a few trials of `muon` there; AdamW's b1 begins at the example's.
MOMENTUM = 0.85
START = {
    "learning_rate": 0.032,
    "rest_learning_rate": 0.032,
    "weight_decay": 0.1,
    "momentum": MOMENTUM,
}
START_AT_JORDANS_SCALE = START | {"learning_rate": 2 * START["learning_rate"]}
# For those whose momentum is not searched for.
START_WITHOUT_MOMENTUM = {
    key: value for key, value in START_AT_JORDANS_SCALE.items() if key != "momentum"
}
EARLIER = "`muon`, `adamw` and `adamw_split`"
# Not in question, so all that let one choose get the same: Adam's decay rates, and no
# decay of what it trains.
SHARED = {
    "adam_b1": recipes.ADAM_B1,
    "adam_b2": recipes.ADAM_B2,
    "adam_weight_decay": 0.0,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Contestant:
    """An optimizer to be tuned and compared.

    Attributes:
      name: on the command line and in the results.
      about: what it is, as short code; the results are kept under it.
      start: the first value of each of its settings, on that setting's ladder.
      build: (settings, rate) -> optimizer. Settings arrive as traced scalars: one
        program serves all trials.
      ladders: the values that settings may take.
      everywhere: whether it is run on every task, however it does on the first.
      clips: whether its update is told the largest logits of attention, from a forward
        pass of its own.
    """

    name: str
    about: str
    start: Mapping[str, float]
    build: Build
    ladders: climb.Ladders = dataclasses.field(default_factory=lambda: LADDERS)
    everywhere: bool = False
    clips: bool = False

    def __post_init__(self):
        for key, value in self.start.items():
            if value not in self.ladders[key]:
                raise ValueError(
                    f"start of {self.name}: {key}={value} is not on its ladder "
                    f"{self.ladders[key]}; move one of them."
                )

    def definition(self) -> dict:
        """What the results file says of it."""
        return {"about": self.about, "start": dict(self.start)}


# What a setting is called by `optax_muon.muon` and by those that follow its names.
ARGUMENTS = {
    "learning_rate": "learning_rate",
    "rest_learning_rate": "adam_learning_rate",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
}


def recipe(
    name: str,
    about: str,
    function: Callable[..., optax.GradientTransformation],
    start: Mapping[str, float] = START,
    *,
    momentum: str = "momentum",
    **others: Any,
) -> Contestant:
    """A contestant whose settings are arguments of `function`, each rate a schedule.

    `momentum` is what the function calls it.
    """
    arguments = ARGUMENTS | {"momentum": momentum}

    def build(settings: Mapping[str, Any], rate: Rate) -> optax.GradientTransformation:
        return function(
            **{
                arguments[key]: rate(value) if key.endswith("rate") else value
                for key, value in settings.items()
            }
        )

    return Contestant(name, about, start, build, **others)
