"""Fixtures that every test file may use."""

import os

import jax
import numpy as np
import pytest

# Tolerances are the CPU's; an accelerator on the machine must be asked for by name.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    """64-bit mode for one test."""
    with jax.enable_x64(True):
        yield
