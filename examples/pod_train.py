r"""Train a GPT on many devices of many hosts with sharded Muon, and survive kills.

Every host runs the same command. On a TPU pod:

    python examples/pod_train.py --distributed --mesh data=4,fsdp=8 --out /shared/run

On N hosts of any kind, each with a number I from 0 to N - 1:

    python examples/pod_train.py --coordinator HOST_0:1234 --processes N --process I \
        --out /shared/run

On one machine, whose CPU plays eight devices:

    python examples/pod_train.py --cpu-devices 8 --mesh data=2,fsdp=4

Started again, on these devices or on others, it resumes from the newest good checkpoint
in --out, a folder that all hosts share. Losses and digests go to result.json there.
"""

import argparse
import dataclasses
import sys

from pod.processes import UsageError, start
from pod.run import GPTConfig, RunConfig, run
from usage import positive

MODEL, CONFIG = GPTConfig(), RunConfig()


def main(argv: list[str] | None = None) -> None:
    """Do what the command line asks, or say in one line why that cannot be done."""
    options = parse(argv)
    try:
        start(options)
        run(_taken(GPTConfig, options), _taken(RunConfig, options))
    except UsageError as error:
        sys.exit(f"error: {error}")


def _taken(kind, options):
    """A configuration from the flags that have its fields' names."""
    fields = dataclasses.fields(kind)
    return kind(**{field.name: getattr(options, field.name) for field in fields})


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; every process of a run is given the same, save --process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag, default, help, **how):
        how.setdefault("type", positive)
        parser.add_argument(
            flag, default=default, help=f"{help} (default: %(default)s)", **how
        )

    add("--mesh", CONFIG.mesh, "axes data, fsdp, tensor as AXIS=SIZE,...", type=str)
    add("--coordinator", None, "HOST:PORT of process 0", type=str)
    add("--processes", None, "how many processes meet there")
    add("--process", None, "this one's number, from 0", type=int)
    parser.add_argument(
        "--distributed", action="store_true", help="let a TPU pod tell the three above"
    )
    add("--cpu-devices", None, "devices for the CPU to play in this process")
    add("--width", MODEL.width, "features of a token")
    add("--layers", MODEL.layers, "blocks in the stack")
    add("--heads", MODEL.heads, "attention heads of a block")
    add("--context", MODEL.context, "bytes the model looks back")
    add("--batch", CONFIG.batch, "windows in a global batch")
    add("--steps", CONFIG.steps, "updates to make")
    add("--learning-rate", CONFIG.learning_rate, "rate of all leaves", type=float)
    add("--seed", CONFIG.seed, "start and order of the data", type=int)
    add("--data", CONFIG.data, "folder of text; None: Python's library", type=str)
    add("--out", CONFIG.out, "shared folder of checkpoints and result", type=str)
    add("--save-every", CONFIG.save_every, "steps between checkpoints")
    add("--keep", CONFIG.keep, "checkpoints to keep; older ones are deleted")
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="on TPU: exchange beside other work, for memory; not every slice can",
    )
    parser.add_argument(
        "--digests", action="store_true", help="print digests of what is saved"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
