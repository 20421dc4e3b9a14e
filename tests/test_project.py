"""The house rules that a program can check."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import optax_muon

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "optax_muon").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_are_short_and_import_nothing_private(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        else:
            continue
        if names[0] != "optax_muon":
            assert not [name for name in names if name.startswith("_")]


def test_every_public_name_is_documented():
    for name in optax_muon.__all__:
        value = getattr(optax_muon, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert len(inspect.getdoc(value).splitlines()) >= 1, name


def pins(file):
    lines = (ROOT / file).read_text().split()
    return dict(line.split("==") for line in lines)


def lower_bounds(group):
    """(name, version) of each `name>=version` among requirements."""
    bounds = [re.fullmatch(r"([\w-]+)>=([\w.]+)", bound) for bound in group]
    return {bound[1]: bound[2] for bound in bounds if bound}


def test_lower_bounds_are_versions_that_tests_run_with():
    """Of what users need, the oldest; of what examples and tests need, the newest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = lower_bounds([*project["dependencies"], *extras["flax"]])
    assert len(needed) == len(project["dependencies"]) + 1
    assert needed.items() <= pins("requirements-oldest.txt").items()
    others = lower_bounds([*extras["plot"], *extras["examples"], *extras["test"]])
    assert others.items() <= pins("requirements.txt").items()
    assert needed.keys() <= pins("requirements.txt").keys()
    dist = lower_bounds(extras["dist"])
    assert dist.items() <= pins("requirements-dist.txt").items()


def test_requirements_hold_versions_and_no_addresses():
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line), line
