"""Train a small GPT on bytes with Muon and with AdamW, and say which learned more.

Run from the repository root:

    python examples/gpt/train.py

It trains once for each optimizer, on the same batches from the same start, and writes
`loss.png` and `result.json` to the folder `--out`. Interrupted, it resumes from its
newest checkpoint when the same command is given again.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import corpus
import optax_muon
import provenance
import recipes
import report
from checkpoints import Checkpoints
from diagnostics import Diagnostics
from loop import TrainConfig, initial_params, train
from model import GPTConfig
from usage import UsageError, positive


def main(argv: list[str] | None = None) -> None:
    """Do what the command line asks, or say in one line why that cannot be done."""
    options = parse(argv)
    try:
        compare(options)
    except UsageError as error:
        sys.exit(f"error: {error}")


def compare(options: argparse.Namespace) -> None:
    """Train with each optimizer asked for, then write and print what came out."""
    model = GPTConfig(options.width, options.layers, options.heads, options.context)
    config = TrainConfig(
        options.batch, options.steps, options.seed, options.evaluate_every
    )
    text = corpus.load(options.data)
    text.require(config.batch, model.context)
    out = Path(options.out)

    settings = {name: dict(recipes.TUNED[name]) for name in options.optimizers}
    if options.learning_rate is not None:
        for changed in settings.values():
            changed["learning_rate"] = options.learning_rate
    shared = {
        "text": f"{text.name} ({text.fingerprint()})",
        **dataclasses.asdict(model),
        **dataclasses.asdict(config),
    }
    every = options.diagnostics_every
    if every is not None:  # the checkpoints hold the records as well
        shared["diagnostics_every"] = every
    # All are opened before any trains: a mismatch should not surface after an hour.
    opened = {
        name: open_checkpoints(out / name, shared | settings[name], options)
        for name in settings
    }

    print(f"Text: {text.name}, {len(text.train):,} bytes to train on")
    tokens = config.batch * model.context
    print(optax_muon.plan(initial_params(model, config.seed)[1], tokens=tokens))
    histories = {}
    for name, checkpoints in opened.items():
        with checkpoints:
            _, histories[name] = train(
                model,
                config,
                text,
                recipes.build(name, settings[name], config.steps),
                label=name,
                checkpoints=checkpoints,
                diagnostics=every
                and Diagnostics(out / name / "diagnostics.csv", every),
            )

    result = {
        "config": shared,
        "environment": provenance.environment(),
        "runs": {
            name: {"settings": settings[name], **dataclasses.asdict(history)}
            for name, history in histories.items()
        },
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    title = f"Byte-level GPT, width {model.width}, {model.layers} layers"
    report.draw(histories, f"{title}, seed {config.seed}", out / "loss.png")
    print(report.verdict(histories))
    print(f"Curves: {out / 'loss.png'}; numbers: {out / 'result.json'}")


def open_checkpoints(
    folder: Path, config: dict, options: argparse.Namespace
) -> Checkpoints:
    """The checkpoints of one optimizer, as --fresh and --resume want to find them."""
    checkpoints = Checkpoints(
        folder, config, options.checkpoint_every, fresh=options.fresh
    )
    if options.resume and checkpoints.latest() is None:
        raise UsageError(
            "--resume",
            folder,
            "there is no checkpoint to resume from",
            "Leave out --resume to start a run",
        )
    return checkpoints


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; its defaults are the run the README shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model, config = GPTConfig(), TrainConfig()

    def add(flag, default, help, **how):
        parser.add_argument(
            flag, default=default, help=f"{help} (default: %(default)s)", **how
        )

    add("--width", model.width, "features of a token", type=positive)
    add("--layers", model.layers, "blocks in the stack", type=positive)
    add("--heads", model.heads, "attention heads of a block", type=positive)
    add("--context", model.context, "bytes the model looks back", type=positive)
    add("--batch", config.batch, "windows in a batch", type=positive)
    add("--steps", config.steps, "updates to make", type=positive)
    add("--seed", config.seed, "start and order of the data", type=int)
    add(
        "--evaluate-every",
        config.evaluate_every,
        "steps between evaluations",
        type=positive,
    )
    add("--data", None, "folder of text files; None: Python's standard library")
    add(
        "--optimizers",
        list(recipes.RECIPES),
        "optimizers to compare",
        nargs="+",
        choices=list(recipes.RECIPES),
        metavar="NAME",
    )
    add(
        "--learning-rate",
        None,
        "rate of the hidden matrices; None: the tuned one of each optimizer",
        type=float,
    )
    add("--out", "runs/gpt", "folder for checkpoints, curves and numbers")
    add(
        "--diagnostics-every",
        None,
        "steps between measurements of every matrix, in OUT/NAME/diagnostics.csv; "
        "None: none",
        type=positive,
    )
    add("--checkpoint-every", 100, "steps between checkpoints", type=positive)
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="fail if there is nothing to resume"
    )
    again.add_argument(
        "--fresh", action="store_true", help="delete the former runs and start over"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
