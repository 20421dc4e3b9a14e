"""Does the best learning rate stay the best when a model becomes wider?

The rate of the hidden matrices alone is varied; embedding, head and norms keep theirs.
"""

import functools
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

import training
from byte_gpt import byte_gpt
from contestants import RATES, START, Contestant, recipe
from field import muon
from gpt_example import loop, model
from ledger import SEEDS, Ledger, key
from tasks import Task
from tuning import say

WIDTHS = (32, 64, 128, 256)
BEST = RATES.index(START["learning_rate"])
# At width 64 a "mup" step is 0.2 to 0.6 of an "adam_rms" step: its range lies two rungs
# higher.
TRIED = {"adam_rms": RATES[BEST - 3 : BEST + 4], "mup": RATES[BEST - 1 : BEST + 6]}
# Half a run: long enough for the best rate to show, and width 256 takes as long as all
# the others together.
STEPS = loop.TrainConfig.steps // 2
TRANSFER_SEEDS = SEEDS[:2]
FIGURE = "transfer.svg"  # beside the tables
CAPTION = "Final loss over the learning rate, by scale and by the width of the model"


def measure(ledger: Ledger, check: Callable[[], None]) -> None:
    """Run what is missing, seed by seed, narrow models first."""
    for seed in TRANSFER_SEEDS:
        for width in WIDTHS:
            ledger.define("tasks", task(width).name, task(width).conditions())
            for scale, rates in TRIED.items():
                for rate in rates:
                    case = key(task(width).name, scale, rate, seed)
                    if row(ledger.document, width, scale, rate, seed) is None:
                        check()
                        ledger.put("transfer", case, run(width, scale, rate, seed))
            training.forget_programs()


def run(width: int, scale: str, rate: float, seed: int) -> dict:
    """One point of the figure, of one seed."""
    found = training.measure(task(width), contestant(scale), settings(rate), seed)
    say(f"transfer, width {width}, {scale}, seed {seed}", found)
    return found


def settings(rate: float) -> dict:
    return START | {"learning_rate": rate}


def row(document: dict, width: int, scale: str, rate: float, seed: int) -> dict | None:
    """A run; those of other settings than today's are measured anew."""
    rows = document["results"].get("transfer", {})
    found = rows.get(key(f"transfer_{width}", scale, rate, seed))
    return found if found and found["settings"] == settings(rate) else None


@functools.cache
def task(width: int) -> Task:
    config = model.GPTConfig(width=width)
    batch = loop.TrainConfig.batch
    return byte_gpt(f"transfer_{width}", config, batch=batch, steps=STEPS, trials=0)


@functools.cache
def contestant(scale: str) -> Contestant:
    function = functools.partial(muon, scale=scale)
    return recipe(scale, f"muon(scale={scale!r})", function)


def is_whole(document: dict, width: int) -> bool:
    """Whether all runs of the width are there."""
    return all(
        row(document, width, scale, rate, seed)
        for scale, rates in TRIED.items()
        for rate in rates
        for seed in TRANSFER_SEEDS
    )


def curve(document: dict, width: int, scale: str) -> list[tuple[float, float]]:
    """(rate, mean final loss) where all seeds ran and none diverged, by rate."""
    found = []
    for rate in TRIED[scale]:
        rows = [row(document, width, scale, rate, seed) for seed in TRANSFER_SEEDS]
        losses = [one and one["validation_loss"] for one in rows]
        if None not in losses:
            found.append((rate, statistics.mean(losses)))
    return found


def best(document: dict, width: int, scale: str) -> float | None:
    """The rate of least loss; None if there is none."""
    points = curve(document, width, scale)
    return min(points, key=lambda point: point[1])[0] if points else None


def draw(document: dict, path: Path) -> None:
    """Final loss over the rate: a panel a scale, a curve a width, its best marked."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")  # needs no display
    panels = figure.subplots(1, len(TRIED), sharey=True)
    for axes, scale in zip(panels, TRIED, strict=True):
        for color, width in enumerate(WIDTHS):
            points = curve(document, width, scale)
            if points:
                rates, losses = zip(*points, strict=True)
                axes.plot(rates, losses, f"C{color}.-", label=f"width {width}")
                rate = best(document, width, scale)
                axes.plot(rate, dict(points)[rate], f"C{color}o")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="learning rate of hidden matrices", title=f'scale="{scale}"')
        axes.grid(alpha=0.3)
    seeds = len(TRANSFER_SEEDS)
    panels[0].set_ylabel(f"loss after {STEPS} steps, mean of {seeds} seeds")
    panels[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and with names of parts that repeat, the same rows draw one file.
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
