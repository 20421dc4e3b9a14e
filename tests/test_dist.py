"""What `make dist` builds: what is in it, and the wheel alone in a new environment."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"{PROJECT['name']}-{PROJECT['version']}"


def run(*command, cwd=ROOT):
    """Standard output and error of a command that must succeed."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Where the sdist is, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return built / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", str(wheel))
    run(python, "-m", "pip", "check")
    return python


def alone(python, code, tmp_path):
    """Run code in that environment, far from this folder; warnings are errors."""
    return run(python, "-I", "-W", "error", "-c", code, cwd=tmp_path)


def test_there_is_one_wheel_and_one_sdist(built):
    names = {path.name for path in built.iterdir() if path.name != ".gitignore"}
    assert names == {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}


def test_the_wheel_holds_the_package_its_types_and_its_license(wheel):
    package = {
        str(path.relative_to(ROOT)) for path in (ROOT / "optax_muon").rglob("*.py")
    }
    about = {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}
    assert set(zipfile.ZipFile(wheel).namelist()) == (
        package | {"optax_muon/py.typed"} | {f"{NAME}.dist-info/{x}" for x in about}
    )


def test_the_sdist_holds_the_repository(built):
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert names == {"PKG-INFO", *files.split("\n")} - {""}


def test_metadata(wheel):
    content = zipfile.ZipFile(wheel).read(f"{NAME}.dist-info/METADATA").decode()
    metadata = email.message_from_string(content)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    required = [x for x in metadata.get_all("Requires-Dist") if "extra ==" not in x]
    assert sorted(required) == sorted(PROJECT["dependencies"])
    assert set(metadata.get_all("Provides-Extra")) == set(
        PROJECT["optional-dependencies"]
    )


def test_the_quickstart_runs_alone(python, tmp_path):
    """As a newcomer's file would: without Flax, and from the installed wheel."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"## Quickstart\n.*?```python\n(.*?)```", readme, flags=re.S)[1]
    check = """
import importlib.util, pathlib, sys
assert pathlib.Path(optax_muon.__file__).is_relative_to(sys.prefix)
assert importlib.util.find_spec("flax") is None
assert not jax.numpy.array_equal(params["dense"]["kernel"], jax.numpy.ones((64, 256)))
assert all(jax.numpy.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
"""
    assert "2 leaves, 16,640 parameters" in alone(python, block + check, tmp_path)


def test_the_tutorial_runs_alone(wheel, tmp_path):
    """With what its first section installs, in an empty folder."""
    page = (ROOT / "docs" / "tutorial.md").read_text()
    assert 'pip install ".[flax]"' in page
    venv.create(tmp_path / "environment", with_pip=True)
    python = str(tmp_path / "environment" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[flax]")
    file = tmp_path / "tutorial.py"
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)
    file.write_text("\n".join(blocks))
    assert "mean squared error: " in run(python, "-I", str(file), cwd=tmp_path)


def test_what_reads_flax_models_works_without_flax(python, tmp_path):
    """Trees that carry no names of axes are an error, which says what would."""
    code = """
import jax, optax_muon
params = {"query": {"kernel": jax.numpy.ones((8, 2, 4))}}
assert optax_muon.shardings_of(params) == {"query": {"kernel": None}}
assert optax_muon.plan(params).leaves[0].matrix == (8, 8)
try:
    optax_muon.axes_from_logical()(params)
except ValueError as error:
    print(error)
"""
    printed = alone(python, code, tmp_path)
    assert "Pass Linen's variables before nn.unbox, or an NNX model" in printed


def test_a_type_checker_sees_the_installed_types(python, tmp_path):
    """Without py.typed, mypy would take everything for Any."""
    file = tmp_path / "user.py"
    file.write_text('import optax_muon\n\noptax_muon.muon("fast")\n')
    command = [sys.executable, "-m", "mypy", "--python-executable", python, str(file)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "[arg-type]" in result.stdout, result.stdout + result.stderr
    assert result.stdout.count("error:") == 1, result.stdout
