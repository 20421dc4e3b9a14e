"""One update of your matrices on your device, by turns with optax.contrib.muon.

Both take five steps with Keller Jordan's coefficients, ours in the form and dtype that
it chooses for the device, optax's in the matrices' own. Forward and backward passes are
not part of it. JAX's default device alone is used.
"""

import argparse
import json
import shlex
from typing import Any

import jax

from optax_muon import _cli_arguments as arguments
from optax_muon import _cli_matrices, _cli_model
from optax_muon._cli_arguments import UsageError
from optax_muon._cli_info import versions
from optax_muon._cli_matrices import Matrices
from optax_muon._cli_progress import Progress
from optax_muon._cli_timing import WARM_UPS, by_turns, ratios, summary
from optax_muon._tables import Table, amount

# Long beside the clock's error, and what a device takes to begin.
SAMPLE_SECONDS = 0.1
OURS, OPTAX = "optax_muon", "optax.contrib.muon"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--shape`, `--count`, `--from`, `--axes`, `--dtype`, `--rounds`, `--out`."""
    parser.add_argument(
        "--shape",
        type=arguments.matrix_shape,
        action="append",
        default=[],
        metavar="INxOUT",
        help="of a matrix, such as 1024x4096; may be repeated",
    )
    parser.add_argument(
        "--count",
        type=arguments.positive,
        action="append",
        default=[],
        help="how many matrices of that shape, one for each --shape; 1 without",
    )
    _cli_model.add_arguments(parser, required=False)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=arguments.positive, default=11)
    parser.add_argument(
        "--out",
        type=arguments.in_an_existing_folder,
        metavar="FILE.json",
        help="also write all samples, with command, versions and hardware",
    )


def run(options: argparse.Namespace) -> None:
    """Measure, and print a table."""
    matrices = _matrices(options)
    arguments.devices()
    result = measure(matrices, options.dtype, options.rounds)
    print(shown(result))
    if options.out is not None:
        document = {"command": command(options), "versions": versions()} | result
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def command(options: argparse.Namespace) -> str:
    """As it was typed."""
    return shlex.join(["python", "-m", "optax_muon", *options.argv])


def _matrices(options: argparse.Namespace) -> Matrices:
    if bool(options.shape) == bool(options.source):
        raise UsageError(
            "bench takes either --shape or --from: which matrices to time; add "
            "--shape 1024x4096 --count 12, or --from my_model:parameters."
        )
    if options.source:
        if options.count:
            raise UsageError("--count belongs to --shape; leave it out with --from.")
        model = _cli_model.read(options.source, options.axes)
        with arguments.library_errors():
            return _cli_matrices.of_model(model)
    if options.axes:
        raise UsageError("--axes belongs to --from; leave it out with --shape.")
    counts = options.count or [1] * len(options.shape)
    if len(counts) != len(options.shape):
        raise UsageError(
            f"{len(counts)} --count for {len(options.shape)} --shape; give one for "
            "each, in their order, or none."
        )
    return _cli_matrices.of_shapes(zip(options.shape, counts, strict=True))


def measure(matrices: Matrices, dtype: str, rounds: int) -> dict[str, Any]:
    """What `--out` holds, but for the command and versions.

    Seconds are of one update, FLOPs of its matrix products, two for a multiply-add.
    """
    device = jax.devices()[0]
    flops = {
        OURS: matrices.flops_of_ours(dtype, device.platform),
        OPTAX: matrices.flops_of_optax(dtype),
    }
    with Progress("measuring", 2 * (WARM_UPS + rounds)) as progress:
        try:
            runs = {
                OURS: matrices.updates(matrices.ours(), dtype),
                OPTAX: matrices.updates(matrices.peer(), dtype),
            }
            samples = by_turns(runs, rounds, progress.advance, SAMPLE_SECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UsageError(
                f"{matrices} do not fit {device.device_kind}, with momentum and "
                "gradient of both optimizers; time fewer (--count), or --dtype "
                "bfloat16."
            ) from error
    return {
        "hardware": {"platform": device.platform, "device": device.device_kind},
        "matrices": str(matrices),
        "dtype": dtype,
        "rounds": rounds,
        "flops": flops,
        "median_seconds": {name: summary(row).median for name, row in samples.items()},
        "ratio": summary(ratios(samples[OPTAX], samples[OURS]))._asdict(),
        "samples": samples,
    }


def shown(result: dict[str, Any]) -> str:
    """The table of a measurement."""
    rows = []
    for name, seconds in result["median_seconds"].items():
        flops = result["flops"][name]
        rate = f"{flops / seconds / 1e12:.3g}"
        rows.append((name, f"{1e3 * seconds:.4g}", amount(flops, "FLOP"), rate))
    header = ("one update", "ms", "products", "TFLOP/s")
    ratio, hardware = result["ratio"], result["hardware"]
    return "\n".join(
        [
            f"{result['matrices']}, {result['dtype']}, on {hardware['device']}",
            "",
            Table(header, rows).text(),
            "",
            f"{OPTAX} takes {ratio['median']:.3g} times as long (quartiles "
            f"{ratio['low']:.3g} to {ratio['high']:.3g}); medians over "
            f"{result['rounds']} rounds",
        ]
    )
