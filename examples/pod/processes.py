"""Several processes as one program: how they find each other, agree, and speak."""

import argparse
import hashlib
import json

import jax
import numpy as np
from jax.experimental import multihost_utils

from usage import UsageError

# On a TPU pod, jax.distributed.initialize() finds all three by itself.
RENDEZVOUS = ("coordinator", "processes", "process")

# Enough for a reason; every process has to send the same number of bytes.
TEXT_BYTES = 512


def start(options: argparse.Namespace) -> None:
    """Make this process one of the program's. Nothing may ask for devices before."""
    if options.cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    given = [flag for flag in RENDEZVOUS if getattr(options, flag) is not None]
    _check(options, given)
    if given:
        # The CPU's own collectives end at the process; gloo's go between them.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            options.coordinator, options.processes, options.process
        )
    elif options.distributed:
        _join_cluster()


def _join_cluster() -> None:
    try:
        jax.distributed.initialize()
    except ValueError as error:  # what jax knows no address of
        raise UsageError(
            "--distributed",
            "alone",
            f"nothing here tells of other processes ({error})",
            "Leave it out to run one process, or give --coordinator, --processes and "
            "--process in its place",
        ) from error


def _check(options: argparse.Namespace, given: list[str]) -> None:
    missing = [f"--{flag}" for flag in RENDEZVOUS if flag not in given]
    if given and missing:
        raise UsageError(
            f"--{given[0]}",
            getattr(options, given[0]),
            f"processes can only meet if {', '.join(missing)} is given as well",
            "Give --coordinator, --processes and --process together; on a TPU pod, "
            "--distributed alone",
        )
    if given and options.distributed:
        raise UsageError(
            "--distributed",
            True,
            f"it finds what --{given[0]} tells by itself",
            "Give --coordinator, --processes and --process, or --distributed alone",
        )
    if given and not 0 <= options.process < options.processes:
        raise UsageError(
            "--process",
            options.process,
            f"{options.processes} processes are numbered from 0 to "
            f"{options.processes - 1}",
            "Give each process a number of its own in that range",
        )


def say(message: str) -> None:
    """Print from process 0 alone, at once: a killed job leaves every line it said."""
    if jax.process_index() == 0:
        print(message, flush=True)


def from_all(text: str) -> list[str]:
    """What each process says, in their order; long texts are cut."""
    ours = np.zeros(TEXT_BYTES, np.uint8)
    said = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
    ours[: len(said)] = said
    rows = np.asarray(multihost_utils.process_allgather(ours)).reshape(-1, TEXT_BYTES)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def require_same(argument: str, value: object, remedy: str) -> None:
    """Raise, on every process, unless `value` (of JSON) is equal on all of them."""
    text = json.dumps(value, sort_keys=True)
    digests = from_all(hashlib.sha256(text.encode()).hexdigest())
    others = [i for i, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise UsageError(
            argument, text, f"processes {others} and process 0 differ in it", remedy
        )
