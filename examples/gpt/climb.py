"""A search over ladders: from the best trial so far to a neighbour not yet tried.

A trial is a row with `settings` and a `validation_loss`, None where it diverged. The
ladder of a setting holds its values in order; all trials are on the ladders.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

Ladders = Mapping[str, Sequence[float]]


def by_loss(rows: Sequence[dict]) -> list[dict]:
    """The trials, best first, diverged ones last."""

    def loss(row: dict) -> float:
        value = row["validation_loss"]
        return math.inf if value is None else value

    return sorted(rows, key=loss)


def proposal(start: dict, ladders: Ladders, tried: Sequence[dict]) -> dict | None:
    """What to try next, given the trials so far, best first; None: nothing is left.

    It is the first untried neighbour of the best trial that still has one, so the
    search climbs while it gets better, and leaves no edge of a grid unlooked behind.
    """
    if not tried:
        return start
    known = [row["settings"] for row in tried]
    fresh = (
        settings
        for center in known
        for settings in neighbours(center, ladders)
        if settings not in known
    )
    return next(fresh, None)


def neighbours(settings: dict, ladders: Ladders) -> Iterator[dict]:
    """The settings one rung away in one of them."""
    for key, value in settings.items():
        ladder = ladders[key]
        for rung in (ladder.index(value) + 1, ladder.index(value) - 1):
            if 0 <= rung < len(ladder):
                yield settings | {key: ladder[rung]}
