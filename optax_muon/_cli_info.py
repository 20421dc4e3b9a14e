"""Versions, devices, and what "auto" chooses for matrices.

The choice is that of NewtonSchulz() for float32 matrices, as optax_muon.explain has it.
"""

import argparse
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence

import jax

from optax_muon import _cli_arguments as arguments
from optax_muon._orthogonalizers import NewtonSchulz, explain
from optax_muon._tables import Table, amount

_PACKAGES = ("optax_muon", "jax", "jaxlib", "optax", "chex", "flax")
# Square, the MLP's of GPT-2 small, and a tall one that reaches the same form.
_EXAMPLES = ((768, 768), (768, 3072), (4096, 1024))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--shape` and `--platform`."""
    parser.add_argument(
        "--shape",
        type=arguments.matrix_shape,
        action="append",
        metavar="INxOUT",
        help="of a matrix, such as 768x3072; may be repeated",
    )
    arguments.add_platform(parser)


def run(options: argparse.Namespace) -> None:
    """Print it; versions first, which help where JAX finds no device."""
    print("\n".join(f"{name:<12}{version}" for name, version in versions().items()))
    found = Counter(device.device_kind for device in arguments.devices())
    here = jax.default_backend()
    kinds = ", ".join(f"{count} x {kind}" for kind, count in found.items())
    print(f"{'platform':<12}{here}\n{'devices':<12}{kinds}\n")
    where = options.platform or here
    with arguments.library_errors():
        print(choices(options.shape or _EXAMPLES, where))


def versions() -> dict[str, str]:
    """Of this library and of what it stands on, by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def choices(shapes: Sequence[tuple[int, int]], platform: str) -> str:
    """A table of what runs, and a line for each shape that says why."""
    found = [(shape, explain(shape, platform=platform)) for shape in shapes]
    rows = [
        (
            f"{shape[0]} x {shape[1]}",
            choice.method,
            str(choice.restarts),
            choice.dtype.name,
            choice.products,
            amount(choice.flops, "FLOP"),
        )
        for shape, choice in found
    ]
    header = ("matrix", "form", "restarts", "products in", "by", "computes")
    reasons = [
        f"  {row[0]}: {choice.reason}"
        for row, (_, choice) in zip(rows, found, strict=True)
    ]
    title = f"{NewtonSchulz()} on {platform}, float32 matrices"
    return "\n".join([title, "", Table(header, rows).text(), "", *reasons])
