"""What `import optax_muon` imports, and that Flax, which it does not, is served."""

import subprocess
import sys

import pytest

PACKAGES = """
def packages():
    loaded = {name.partition(".")[0] for name in sys.modules}
    return {x for x in loaded - sys.stdlib_module_names if not x.startswith("_")}
"""
USE = """
params = {"query": {"kernel": jax.numpy.ones((4, 2, 2))}, "bias": jax.numpy.ones(4)}
tx = optax_muon.muon(0.1, normalizer=optax_muon.normalize_neurons())
state = tx.init(params)
tx.update(params, state, params)
optax_muon.plan(params)
optax_muon.shardings_of(params)
"""


def run(*lines):
    """In an interpreter of its own."""
    code = "\n".join(["import sys", PACKAGES, *lines])
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=600)


def test_import_loads_its_own_dependencies_and_nothing_else():
    """Flax alone takes longer to import than all of these."""
    run(
        "import chex, jaxtyping, optax",
        "before = packages()",
        "import optax_muon",
        "assert packages() - before == {'optax_muon'}, packages() - before",
    )


def test_no_function_imports_flax():
    run("import jax, optax, optax_muon", USE, "assert 'flax' not in packages()")


@pytest.mark.parametrize("flax", ["before", "after", "last"])
def test_states_are_registered_whenever_flax_is_imported(flax):
    flax_import = "from flax import serialization"
    run(
        flax_import if flax == "before" else "",
        "import jax, optax, optax_muon",
        flax_import if flax == "after" else "",
        USE,
        flax_import if flax == "last" else "",
        "back = serialization.from_bytes(state, serialization.to_bytes(state))",
        "assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), state, back))",
    )


def test_flax_serialization_stays_the_module_that_it_is():
    """Looked for but not imported, imported, and once more: the loader is its own."""
    run(
        "import importlib.util, optax_muon",
        "assert importlib.util.find_spec('flax.serialization') is not None",
        "import flax.serialization as module",
        "for _ in range(2):",
        "    kinds = type(module.__loader__), type(module.__spec__.loader)",
        "    assert kinds == (importlib.machinery.SourceFileLoader,) * 2, kinds",
        "    state = optax_muon.scale_by_muon().init({})",
        "    assert type(module.to_state_dict(state)) is dict",
        "    importlib.reload(module)",
    )


def test_without_flax_everything_else_works():
    run(
        "sys.modules['flax'] = None  # as if it were not installed",
        "import jax, optax, optax_muon",
        USE,
    )
