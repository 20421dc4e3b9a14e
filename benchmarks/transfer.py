"""Does the best learning rate stay the best when a model becomes wider?

The rate of the hidden matrices alone is varied; embedding, head and norms keep theirs.
"""

import functools
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
SEED = SEEDS[0]


def measure(ledger: Ledger, check: Callable[[], None]) -> None:
    """Run what is missing, narrow models first."""
    for width in WIDTHS:
        for scale, rates in TRIED.items():
            for rate in rates:
                if ledger.row("transfer", key(task(width).name, scale, rate)) is None:
                    check()
                    run(width, scale, rate, ledger)
        training.forget_programs()


def run(width: int, scale: str, rate: float, ledger: Ledger) -> None:
    """One point of the figure."""
    settings = START | {"learning_rate": rate}
    ledger.define("tasks", task(width).name, task(width).conditions())
    row = training.measure(task(width), contestant(scale), settings, SEED)
    case = key(task(width).name, scale, rate)
    ledger.put("transfer", case, row)
    say(f"transfer, width {width}, {scale}", row)


@functools.cache
def task(width: int) -> Task:
    config = model.GPTConfig(width=width)
    batch = loop.TrainConfig.batch
    return byte_gpt(f"transfer_{width}", config, batch=batch, steps=STEPS, trials=0)


@functools.cache
def contestant(scale: str) -> Contestant:
    function = functools.partial(muon, scale=scale)
    return recipe(scale, f"muon(scale={scale!r})", function)


def curve(document: dict, width: int, scale: str) -> list[tuple[float, float]]:
    """(rate, final loss) of the runs that did not diverge, in order of the rate."""
    prefix = key(f"transfer_{width}", scale, "")
    return sorted(
        (row["settings"]["learning_rate"], row["validation_loss"])
        for case, row in document["results"].get("transfer", {}).items()
        if case.startswith(prefix) and row["validation_loss"] is not None
    )


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
                axes.plot(*min(points, key=lambda point: point[1]), f"C{color}o")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="learning rate of hidden matrices", title=f'scale="{scale}"')
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"validation loss after {STEPS} steps")
    panels[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and with names of parts that repeat, the same rows draw one file.
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
