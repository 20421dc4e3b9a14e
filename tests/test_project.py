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


def test_lower_bounds_are_the_versions_that_tests_run_with():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==") for line in (ROOT / "requirements.txt").read_text().split()
    )
    extras = project["optional-dependencies"]
    wanted = [
        bound
        for group in (project["dependencies"], extras["flax"], extras["plot"])
        for bound in [*group, *extras["examples"], *extras["test"]]
    ]
    for bound in wanted:
        if ">=" in bound:
            name, version = re.split(">=", bound)
            assert pins[name] == version


def test_requirements_hold_versions_and_no_addresses():
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line), line
