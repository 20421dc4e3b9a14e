"""What a measurement depends on besides the code: versions and hardware."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import jax

import optax_muon

PACKAGES = ("jax", "jaxlib", "optax", "optax_muon", "numpy", "torch")


def environment() -> dict:
    """Versions and hardware; numbers measured in different ones are not comparable."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "cpu": cpu_model(),
        "cpu_count": cores(),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def version(package: str) -> str | None:
    """Its version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), flags=re.M)
        if found:
            return found[1].strip()
    return platform.machine()


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slug() -> str:
    """The machine's name in a file name: cpu, nvidia-h200, tpu-v4."""
    if jax.default_backend() == "cpu":
        return "cpu"
    kind = jax.devices()[0].device_kind
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


@functools.cache
def source() -> str:
    """A fingerprint of the library's files: versions do not change while it grows.

    Of those it began with: a later edit changes no process that runs.
    """
    folder = Path(optax_muon.__file__).parent
    return fingerprint(folder, folder.rglob("*.py"))


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """Of the files' names below the folder, and of what is in them."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
