"""The small examples run, shortened, and learn. (The GPT has tests of its own.)"""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quickstart(capsys):
    assert load("quickstart").main(steps=60) < 0.1  # the target's own variance is 0.25
    assert "layers/0/kernel" in capsys.readouterr().out


def test_linen_digits(capsys):
    accuracy = load("linen_digits").main(["--epochs", "2"])
    assert accuracy > 0.8  # chance is 0.1
    out = capsys.readouterr().out
    assert "Conv_1/kernel" in out


def test_custom_recipe():
    assert load("custom_recipe").main(steps=40) < 0.5


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda p: p.name)
def test_no_example_shadows_the_standard_library(path):
    import sys

    assert path.stem not in sys.stdlib_module_names
