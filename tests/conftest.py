"""Fixtures that every test file may use."""

import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.pod_small import letters, trainings

# Tolerances are the CPU's; an accelerator on the machine must be asked for by name.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    """64-bit mode for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def benchmark_modules():
    """The files of benchmarks/, which import each other by name, may be imported.

    No other test should see them, nor we its: the GPT example has a `report` as well.
    Some of them take modules of that example along, which must go, too.
    """
    folder = ROOT / "benchmarks"
    names = {path.stem for path in folder.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    yield
    sys.path[:] = path
    for name in names & set(sys.modules):
        del sys.modules[name]
    forget_examples(before)
    sys.modules.update(others)


@pytest.fixture(scope="module")
def pod_modules():
    """pod_train.py, its folder pod/ and the GPT example's files may be imported."""
    folders = [str(EXAMPLES), str(EXAMPLES / "gpt")]
    before = set(sys.modules)
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)
    forget_examples(before)


def forget_examples(before):
    """Unload the examples' modules that were not loaded before."""
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(EXAMPLES)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def pod_text(pod_modules):
    """A corpus of random bytes."""
    return letters()


@pytest.fixture(scope="module")
def pod_training(pod_modules):
    """The pod program's small training on a mesh of the given sizes."""
    return trainings()
