"""For all tests here: files of benchmarks/ can be imported, and runs be counted."""

import pytest

from tests.convergence.small import small_task, stub


@pytest.fixture(scope="module", autouse=True)
def _benchmarks(benchmark_modules):
    """Their modules may be imported."""


@pytest.fixture(scope="module")
def task(benchmark_modules):
    """A task of the first one's name that takes a moment."""
    return small_task("gpt")


@pytest.fixture
def runs(monkeypatch):
    """What is run from here on, instead of running it."""
    import training

    found = []
    monkeypatch.setattr(training, "measure", stub(found))
    return found
