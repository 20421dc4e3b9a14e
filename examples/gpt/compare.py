"""The comparison the README reports: the tuned optimizers over three seeds.

    python examples/gpt/compare.py

The seeds differ from the sweep's. Each run lands in results/compare.json as it ends,
and the next call goes on from there.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

import jax

import corpus
import provenance
import recipes
from corpus import Corpus
from loop import History, TrainConfig, train
from model import GPTConfig
from records import Records
from report import passing_step

RESULTS = Path(__file__).parent / "results" / "compare.json"
SEEDS = (0, 1, 2)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing of the comparison, then print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="results file")
    options = parser.parse_args(argv)

    model, config, text = GPTConfig(), TrainConfig(), corpus.load()
    records = Records(
        options.out,
        {
            "command": "python examples/gpt/compare.py",
            "text": f"{text.name} ({text.fingerprint()})",
            "model": dataclasses.asdict(model),
            "training": dataclasses.asdict(config) | {"seed": SEEDS},
            "settings": recipes.TUNED,
            "environment": provenance.environment(),
        },
    )
    run(model, config, text, records)
    print(table(records.rows))


def run(model: GPTConfig, config: TrainConfig, text: Corpus, records: Records) -> None:
    """Train every optimizer from every seed, save those runs that are done."""
    done = {(row["optimizer"], row["seed"]) for row in records.rows}
    for seed in SEEDS:
        for name in recipes.RECIPES:
            if (name, seed) in done:
                continue
            _, history = train(
                model,
                dataclasses.replace(config, seed=seed),
                text,
                recipes.build(name, recipes.TUNED[name], config.steps),
                label=f"{name}, seed {seed}",
            )
            jax.clear_caches()  # every run compiles its own step
            records.append(
                {
                    "optimizer": name,
                    "seed": seed,
                    "validation": history.validation,
                    "tokens_per_second": round(history.tokens_per_second),
                }
            )


def table(rows: list[dict]) -> str:
    """Final losses over the seeds, and when Muon passed where the others ended."""
    lines = ["Final validation loss, nats per byte: mean (lowest to highest seed)"]
    runs = {
        name: [
            History(validation=row["validation"])
            for seed in SEEDS
            for row in rows
            if (row["optimizer"], row["seed"]) == (name, seed)
        ]
        for name in recipes.RECIPES
    }
    for name, histories in runs.items():
        finals = [history.final for history in histories]
        line = (
            f"  {name:<12} {statistics.mean(finals):.3f}"
            f" ({min(finals):.3f} to {max(finals):.3f})"
        )
        if name != "muon":
            passed = [
                str(passing_step(muon, rival))
                for muon, rival in zip(runs["muon"], histories, strict=True)
            ]
            line += f"; muon below that by step {', '.join(passed)}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
