"""What the commands share: errors, shapes, files, platforms and devices."""

import argparse
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from optax_muon._cli_progress import Progress

PLATFORMS = ("cpu", "gpu", "tpu")
_PACKAGE = str(Path(__file__).parent)


class UsageError(Exception):
    """What the user can put right: says what, why, and what to do."""


@contextlib.contextmanager
def library_errors() -> Iterator[None]:
    """Errors that this library raises itself become `UsageError`: they tell all.

    Those that come from deeper, or from the user's own rule, keep their tracebacks.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        source = "" if trace is None else trace.tb_frame.f_code.co_filename
        if not source.startswith(_PACKAGE):
            raise
        raise UsageError(str(error)) from error


def matrix_shape(text: str) -> tuple[int, int]:
    """The type of `--shape`.

    >>> matrix_shape("768x3072")
    (768, 3072)
    """
    found = re.fullmatch(r"([1-9]\d*)[x,]([1-9]\d*)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the shape of a matrix; write FAN_INxFAN_OUT, as in "
            "768x3072"
        )
    return int(found[1]), int(found[2])


def positive(text: str) -> int:
    """The type of options that count something."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def in_an_existing_folder(text: str) -> Path:
    """The type of options that name a file to be written: known before the work."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: there is no folder {str(path.parent)!r}; "
            "make it, or name another"
        )
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file in it")
    return path


def add_platform(parser: argparse.ArgumentParser) -> None:
    """`--platform`, as `explain` and `plan` take it."""
    parser.add_argument(
        "--platform",
        choices=PLATFORMS,
        help="for which to tell; by default that of this machine's JAX",
    )


def devices() -> list[jax.Device]:
    """JAX's devices; starting JAX is where drivers and settings fail."""
    try:
        with Progress("starting JAX"):
            return jax.devices()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"JAX found no device: {reason} Mend JAX's installation or JAX_PLATFORMS, "
            "or set JAX_PLATFORMS=cpu to go on without."
        ) from error
