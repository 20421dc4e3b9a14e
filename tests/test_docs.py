"""The documentation tells the truth: its code runs, and its lists are complete."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import optax
import pytest

import optax_muon
import optax_muon.plot
from optax_muon._cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def line_of(page, block):
    text = page.read_text()
    return text[: text.index(block)].count("\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_runs_in_order(page, monkeypatch, tmp_path):
    """In one namespace a page; paths in it are those of an empty folder."""
    monkeypatch.chdir(tmp_path)
    # Flax and pickles find a class by its module's name.
    namespace = {"__name__": "docs_page"}
    for block in blocks(page):
        # Errors show the line of the page.
        source = "\n" * line_of(page, block) + block
        exec(compile(source, str(page), "exec"), namespace)


@pytest.mark.parametrize("name", ["sharding", "checkpoints"])
def test_code_on_meshes_runs_on_one_device(name, tmp_path):
    """As a reader's machine may have; these tests have eight."""
    code = "\n".join(blocks(DOCS / "guides" / f"{name}.md"))
    code += "\nassert jax.device_count() == 1\n"
    told = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    environment = os.environ | told | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True
    )


def test_commands_of_the_shell_run(monkeypatch, tmp_path, capsys):
    """Those of the guide, in a folder with its model; what is timed is made small."""
    page = DOCS / "guides" / "shell.md"
    (tmp_path / "my_model.py").write_text(blocks(page)[0])
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^python -m optax_muon (.*)$", page.read_text(), flags=re.M)
    assert len(commands) == 10
    for command in commands:
        argv = shlex.split(command.split(" > ")[0].replace("1024x4096", "16x64"))
        more = ["--rounds=1"] if argv[0] == "bench" else []
        assert main([*argv, *more]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out
    written = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert written == {"my_model.py", "plan.html", "speed.json", "maps.svg"}
    del sys.modules["my_model"]


def test_code_blocks_are_of_a_known_language():
    """A block of another name would not be run, and nobody would notice."""
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(), flags=re.M)
        opening, closing = fences[::2], fences[1::2]
        assert set(opening) <= {"python", "bash", "text"}, page
        assert set(closing) <= {""}, page


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "api.md").read_text()
    names = re.findall(r"^::: optax_muon\.(\w+)$", text, flags=re.M)
    names += re.findall(r"^### `(\w+)`", text, flags=re.M)
    assert sorted(names) == sorted(optax_muon.__all__)
    figures = re.findall(r"^::: optax_muon\.plot\.(\w+)$", text, flags=re.M)
    assert sorted(figures) == sorted(optax_muon.plot.__all__)


# torch.optim.Muon of PyTorch 2.13 (also of 2.14).
TORCH = "params lr weight_decay momentum nesterov ns_coefficients eps ns_steps"
TORCH += " adjust_lr_fn"
# KellerJordan/Muon, muon.py: both classes for matrices, and the keys that groups of
# MuonWithAuxAdam may have.
JORDAN = "params lr weight_decay momentum use_muon betas eps"
# The same file's zeropower_via_newtonschulz5 and muon_update.
FUNCTIONS = "G steps grad momentum beta ns_steps nesterov"

TABLES = {
    "from-optax.md": [inspect.signature(optax.contrib.muon).parameters],
    "from-adamw.md": [inspect.signature(optax.adamw).parameters],
    "from-torch-and-keller-jordan.md": [
        TORCH.split(),
        JORDAN.split(),
        FUNCTIONS.split(),
    ],
}


@pytest.mark.parametrize("guide", TABLES)
def test_tables_of_arguments_are_complete(guide):
    """The first cells of the last tables of a guide are the arguments, each once."""
    text = (DOCS / "guides" / guide).read_text()
    tables = re.findall(r"^\|---.*\n((?:\|.*\n)+)", text, flags=re.M)
    for table, arguments in zip(
        tables[-len(TABLES[guide]) :], TABLES[guide], strict=True
    ):
        cells = [row.split("|")[1] for row in table.splitlines()]
        named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
        assert sorted(named) == sorted(arguments)


def test_benchmark_tables_can_be_made():
    """Every table that a page asks for is one that docs/tables.py can make."""
    script = (
        "import sys; sys.path.insert(0, 'docs'); import tables, pathlib\n"
        "for page in 'benchmarks', 'guides/recipes-and-variants', "
        "'guides/from-adamw':\n"
        "    page = pathlib.Path(f'docs/{page}.md').read_text()\n"
        "    made = tables.on_page_markdown(page)\n"
        "    asked = page.count('<!-- table')\n"
        "    assert asked and '<!-- table' not in made\n"
        "    assert made.count('| --- |') >= page.count('| --- |') + asked\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
