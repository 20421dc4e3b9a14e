"""Tune the three optimizers alike: the same model, text, seed and number of trials.

    python examples/gpt/sweep.py

Each optimizer starts from its `START`. From then on, the best trial that still has an
untried neighbour (one hyperparameter a rung up or down its ladder) gets that neighbour
tried (`climb`), and every optimizer has the same budget.

Each trial lands in results/sweep.json as it ends, and the next call goes on from there.
The best of each belongs in `recipes.TUNED`.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path

import jax

import climb
import corpus
import provenance
import recipes
from corpus import Corpus
from loop import TrainConfig, train
from model import GPTConfig
from records import Records

RESULTS = Path(__file__).parent / "results" / "sweep.json"

# Not a seed the comparison reports: settings must not be chosen by the noise they are
# judged under.
TUNING = TrainConfig(seed=100, evaluate_every=TrainConfig.steps)

RATES = tuple(5e-4 * 2**rung for rung in range(10))
LADDERS = {
    "learning_rate": RATES,
    "rest_learning_rate": RATES,
    "weight_decay": (0.0, 0.1, 0.3, 1.0, 3.0),
}
# Where a first search ended, of 14 trials each from customary settings (rates of 4e-3,
# Muon 8e-3, decay 0.1), on a text that still held idlelib: results/first_sweep.json.
START = {
    "muon": {"learning_rate": 0.032, "rest_learning_rate": 0.064, "weight_decay": 0.1},
    "adamw": {"learning_rate": 0.016, "weight_decay": 1.0},
    "adamw_split": {
        "learning_rate": 0.004,
        "rest_learning_rate": 0.032,
        "weight_decay": 0.1,
    },
}


def main(argv: list[str] | None = None) -> None:
    """Go on with the sweep, then print the best of each optimizer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trials", type=int, default=8, help="for each optimizer (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="results file")
    options = parser.parse_args(argv)

    model, text = GPTConfig(), corpus.load()
    records = Records(
        options.out,
        {
            "command": "python examples/gpt/sweep.py",
            "text": f"{text.name} ({text.fingerprint()})",
            "model": dataclasses.asdict(model),
            "training": dataclasses.asdict(TUNING),
            "environment": provenance.environment(),
        },
    )
    search(model, TUNING, text, options.trials, records)
    for name in START:
        best = by_loss(records.rows, name)[0]
        print(f"{name}: {best['validation_loss']:.4f} at {best['settings']}")


def search(
    model: GPTConfig, config: TrainConfig, text: Corpus, trials: int, records: Records
) -> None:
    """Give each optimizer its trials, in turns, so that a sweep cut short is fair."""
    for budget in range(1, trials + 1):
        for name in START:
            tried = by_loss(records.rows, name)
            if len(tried) >= budget:
                continue
            settings = climb.proposal(START[name], LADDERS, tried)
            if settings is None:  # a budget that covers every rung
                continue
            records.append(
                {"optimizer": name, "settings": settings}
                | measure(model, config, text, name, settings)
            )
            print(records.rows[-1], flush=True)


def measure(model, config, text, name, settings) -> dict:
    """One trial: the loss that a run ends with."""
    start = time.perf_counter()
    optimizer = recipes.build(name, settings, config.steps)
    _, history = train(model, config, text, optimizer, label=name)
    jax.clear_caches()  # every trial compiles its own step, and never uses it again
    diverged = math.isinf(history.final)
    return {
        "validation_loss": None if diverged else history.final,
        "seconds": round(time.perf_counter() - start, 1),
    }


def by_loss(rows: list[dict], name: str) -> list[dict]:
    """The trials of one optimizer, best first, diverged ones last."""
    return climb.by_loss([row for row in rows if row["optimizer"] == name])


if __name__ == "__main__":
    main()
