"""The types that users see: mypy accepts the README's code, and rejects misuse."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Both write mypy's cache, so they run one at a time.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# What --strict means, but that calls of untyped functions pass: JAX has some.
STRICT = """
disallow-any-generics, disallow-subclassing-any, disallow-untyped-decorators,
check-untyped-defs, warn-return-any, no-implicit-reexport, strict-equality,
extra-checks, warn-unreachable
"""
# The README's functions have no annotations; and optax.apply_updates gives a type of
# its own for the params that it was given.
AS_WRITTEN = "allow-untyped-defs, allow-incomplete-defs, allow-redefinition"

# A line each, and the code of the one error that it must be. Presets, whose signatures
# are put together when they are defined, show their results to type checkers, no more.
MISUSES = {
    'muon(learning_rate="x")': "arg-type",
    "muon()": "call-arg",
    "muon(0.1, 0.95)": "call-arg",
    "muon(0.1, lr=0.2)": "call-arg",
    'muon(0.1, weight_decay="0.1")': "arg-type",
    "muon(0.1, orthogonalizer=NewtonSchulz)": "arg-type",
    "muon(0.1, normalizer=optax_muon.normalize_neurons)": "arg-type",
    "muon(0.1) + 1": "operator",
    'scale_by_muon(nesterov="yes")': "arg-type",
    "scale_by_muon(0.95, False)": "call-arg",
    "scale_by_muon(scale=len)": "arg-type",
    'NewtonSchulz(steps="5")': "arg-type",
    "NewtonSchulz(restarts=2)": "arg-type",
    'NewtonSchulz("cubic", 5, "gram")': "call-arg",
    "NewtonSchulz().steps = 3": "misc",
    "Svd(steps=3)": "call-arg",
    'MatrixAxes(fan_in="rows")': "arg-type",
    "MatrixAxes(0, 1, (2,))": "call-arg",
    'explain("768, 3072")': "arg-type",
    "explain((4, 4), Svd())": "arg-type",
    "plan({}).leafs": "attr-defined",
    "route(muon(0.1))": "call-arg",
    "route(muon, optax.adamw(0.1))": "arg-type",
    "keller_jordan(0.1) + 1": "operator",
    "stacked(0)": "arg-type",
    "fused('qkv', 3)": "arg-type",
    "qk_clip(rule='flax')": "arg-type",
    "optax_muon.Muon(0.1)": "attr-defined",
    "find_state({}).mu": "attr-defined",
}


def check(file, flags):
    """mypy's errors in `file`: (line, code, message)."""
    file.write_text(f"# mypy: {' '.join(flags.split())}\n{file.read_text()}")
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", str(file)],
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 1), result
    assert not result.stderr
    pattern = r"^.*?:(\d+): error: (.*)  \[([\w-]+)\]$"
    errors = re.findall(pattern, result.stdout, flags=re.M)
    assert bool(errors) == bool(result.returncode), result.stdout
    return [(int(line) - 1, code, message) for line, message, code in errors]


def test_the_readme_is_well_typed(tmp_path):
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    assert len(blocks) >= 7
    file = tmp_path / "readme.py"
    file.write_text("\n".join(blocks))
    assert check(file, f"{STRICT}, {AS_WRITTEN}") == []


def test_every_misuse_is_an_error(tmp_path):
    names = sorted({re.match(r"\w+", line)[0] for line in MISUSES} - {"optax_muon"})
    header = f"import optax, optax_muon; from optax_muon import {', '.join(names)}"
    file = tmp_path / "misuses.py"
    file.write_text("\n".join([header, *MISUSES]))
    lines = dict(enumerate(MISUSES.items(), start=2))
    expected = [(number, code) for number, (_, code) in lines.items()]
    found = check(file, STRICT)
    assert [(line, code) for line, code, _ in found] == expected, found
