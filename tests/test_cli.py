"""The command line says what the library says."""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from optax_muon import (
    COEFFICIENTS,
    MatrixAxes,
    NewtonSchulz,
    axes_from_linen,
    axes_from_nnx,
    explain,
    plan,
)
from optax_muon import _cli_info as info
from optax_muon._cli import _parser, main
from optax_muon._plan_rows import leaf_table
from tests import cli_models

HERE = "tests.cli_models"
README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture
def shell(capsys):
    """A successful command's output."""

    def run(*argv):
        assert main(argv) == 0
        return capsys.readouterr().out

    return run


def body(text, header):
    """The cells of the table with such a header."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line:
            break
        rows.append(re.split("  +", line))
    return rows


def test_info_tells_versions_and_devices(shell):
    text = shell("info")
    for name in ("optax_muon", "jax", "jaxlib", "optax", "chex", "flax"):
        version = importlib.metadata.version(name)
        assert re.search(rf"^{name} +{re.escape(version)}$", text, flags=re.M)
    assert f"platform    {jax.default_backend()}\n" in text
    assert f"devices     {jax.device_count()} x cpu\n" in text


def test_info_without_flax(monkeypatch):
    def version(name):
        if name == "flax":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert info.versions()["flax"] == "not installed"
    assert info.versions()["optax"] == "1.2.3"


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_info_tells_what_explain_tells(shell, platform):
    shapes = [(768, 3072), (2048, 512), (512, 512)]
    arguments = [f"--shape={rows}x{columns}" for rows, columns in shapes]
    text = shell("info", *arguments, "--platform", platform)
    found = body(text, "matrix")
    assert len(found) == len(shapes)
    for (rows, columns), cells in zip(shapes, found, strict=True):
        choice = explain((rows, columns), platform=platform)
        assert cells[:5] == [
            f"{rows} x {columns}",
            choice.method,
            str(choice.restarts),
            choice.dtype.name,
            choice.products,
        ]
        assert f"  {rows} x {columns}: {choice.reason}\n" in text + "\n"


EXPECTED = {
    "parameters": lambda: plan(cli_models.parameters()),
    "equinox_model": lambda: plan(
        {"conv": {"weight": jax.ShapeDtypeStruct((16, 4, 2, 2), jnp.float32)}},
        MatrixAxes((1, 2, 3), 0),
    ),
    "nnx_model": lambda: plan(
        {
            "norm": {"bias": jnp.ones(16), "scale": jnp.ones(16)},
            "proj": {"bias": jnp.ones((2, 8)), "kernel": jnp.ones((16, 2, 8))},
        },
        axes_from_nnx(cli_models.nnx_model()),
    ),
    "linen_model": lambda: plan(
        {"bias": jnp.ones((2, 8)), "kernel": jnp.ones((16, 2, 8))},
        axes_from_linen(*cli_models.linen_model()),
    ),
}


CALLS = {
    "parameters": "optax_muon.muon(learning_rate)\n",
    **{
        f"{library}_model": "optax_muon.muon(learning_rate, "
        f"matrix_axes=optax_muon.axes_from_{library}({arguments}))\n"
        for library, arguments in [
            ("equinox", "model"),
            ("nnx", "model"),
            ("linen", "module, *inputs"),
        ]
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_plan_is_the_librarys(shell, name):
    found = EXPECTED[name]()
    muon = [leaf.matrix for leaf in found.leaves if leaf.optimizer == "muon"]
    assert muon == [(16, 32) if name == "parameters" else (16, 16)]
    source = f"--from={HERE}:{name}"
    text, call = shell("plan", source).split("\n\nThe optimizer: ")
    assert text == str(found)
    assert call == CALLS[name]
    assert json.loads(shell("plan", source, "--json")) == as_json(found)


def as_json(found):
    return json.loads(json.dumps(found.as_dict()))


def test_plan_passes_its_options_on(shell, tmp_path):
    params = cli_models.stacked_parameters()
    options = {"tokens": 512.0, "platform": "tpu"}
    found = plan(params, cli_models.STACKED_AXES, **options)
    file = tmp_path / "plan.html"
    arguments = [
        f"--from={HERE}:stacked_parameters",
        f"--axes={HERE}:STACKED_AXES",
        "--tokens=512",
        "--platform=tpu",
    ]
    text = shell("plan", *arguments, f"--html={file}")
    call = f"optax_muon.muon(learning_rate, matrix_axes={HERE}.STACKED_AXES)"
    assert text == f"{found}\n\nThe optimizer: {call}\n"
    assert leaf_table(found.leaves).html() in file.read_text()
    assert json.loads(shell("plan", *arguments, "--json")) == as_json(found)


def test_axes_replace_those_of_the_model(shell):
    shown = shell("plan", f"--from={HERE}:nnx_model", f"--axes={HERE}:all_to_adamw")
    assert "muon: 0 leaves" in shown


@pytest.mark.parametrize("name", ["unexplained_nnx", "unexplained_linen"])
@pytest.mark.parametrize("command", ["plan", "bench"])
def test_axes_for_a_model_that_does_not_tell(shell, name, command):
    more = ["--rounds=1"] if command == "bench" else []
    axes = f"--axes={HERE}:EXPERTS"
    assert "4 x 8" in shell(command, f"--from={HERE}:{name}", axes, *more)


def test_modules_come_from_the_current_folder(shell, tmp_path, monkeypatch):
    source = "import jax\ndef f():\n    return {'kernel': jax.numpy.ones((3, 5))}\n"
    (tmp_path / "only_here_cli.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert "3 x 5" in shell("plan", "--from=only_here_cli:f")
    assert sys.path == before
    del sys.modules["only_here_cli"]


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("steps", [None, 2, 7])
def test_a_table_has_the_rows_that_run(shell, name, steps):
    more = [] if steps is None else [f"--steps={steps}"]
    text = shell("coefficients", f"--table={name}", *more)
    rows = [tuple(map(float, cells[1:])) for cells in body(text, "step")]
    assert tuple(rows) == NewtonSchulz(name, steps).rows  # to the last bit
    assert text.startswith(f"{name}: {COEFFICIENTS[name].source}\n")


def test_all_tables_are_listed_with_their_bands(shell):
    rows = {cells[0]: cells[1:] for cells in body(shell("coefficients"), "table")}
    assert list(rows) == list(COEFFICIENTS)
    assert rows["keller_jordan"] == ["5", "0.471 to 1.202", "485"]
    assert rows["polar_express"][1] == "0.729 to 1.124"  # as the CHANGELOG has it


COMMANDS = re.findall(r"^python -m optax_muon (.*?)(?: *#.*)?$", README, flags=re.M)


def test_commands_of_the_readme_parse():
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        assert _parser().parse_args(shlex.split(command)).run


def started(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "optax_muon", *argv],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_as_a_program():
    found = started("info", "--platform=tpu", JAX_PLATFORMS="cpu")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines()[0].startswith("python ")
    assert body(found.stdout, "matrix")[0][3] == "bfloat16"
    # No device is the user's to mend; versions help with that, and come first.
    found = started("info", JAX_PLATFORMS="abacus")
    assert found.returncode == 2
    assert "optax_muon  " in found.stdout
    assert "JAX found no device: " in found.stderr
    assert "Traceback" not in found.stderr


def test_nobody_need_read_to_the_end():
    """As with `| head`, which closes its end of the pipe."""
    with subprocess.Popen(
        [sys.executable, "-m", "optax_muon", "coefficients"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
