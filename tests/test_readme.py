"""The README tells the truth: its code runs, its tables and its tree are complete."""

import ast
import json
import re
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_muon

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title):
    return re.split(r"^## ", README.split(f"## {title}\n")[1], flags=re.M)[0]


def cells(table, name):
    """Those of the row that begins with the name."""
    row = re.search(rf"^\| `{name}` \|.*$", table, flags=re.M).group()
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_code_blocks_run_in_order(capsys):
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, namespace)
    printed = capsys.readouterr().out
    assert f"```\n{printed}```" in section("Quickstart")


RECIPES = re.findall(r"^\|.*\| `(.*)` \|$", section("Recipes"), flags=re.M)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_run(recipe):
    names = {**vars(optax_muon), "optax": optax, "lr": 0.1, "adam_lr": 0.01}
    tx = eval(recipe, names)
    params, gradient = {"kernel": jnp.ones((3, 4))}, {"kernel": jnp.eye(3, 4)}
    updates, _ = tx.update(gradient, tx.init(params), params)
    assert jnp.isfinite(updates["kernel"]).all()
    assert updates["kernel"][0, 0] < 0


# Contestants of benchmarks/convergence.py, and what their lines of the tables hold.
EFFECTS = {
    "keller_jordan": "keller_jordan()",
    "moonlight": "moonlight(",
    "normuon": "normuon(",
    "deepseek_v4": "deepseek_v4(",
    "muon_hyperball": "muon_hyperball(",
    "scion": "scion(",
    "soap_muon": "soap_muon(",
    "speedrun": "speedrun(",
    "muoneq": "muon(lr, preconditioner=equilibrate()",
    "normalize_neurons": "muon(lr, normalizer=normalize_neurons()",
    "snap_frobenius": "muon(lr, normalizer=snap_frobenius()",
    "adamuon": "preconditioner=optax.scale_by_sign()",
    "cautious": "cautious=True",
    "dual_norm": "scale_by_dual_norm(",
    "dion2": "scale_by_dion2(",
}


def test_there_are_recipes():
    assert len(RECIPES) >= 7


def test_table_of_leaves():
    """Each line of the table, as a leaf of such a shape."""
    shapes = {
        "mlp/kernel": ((8, 16), (8, 16)),
        "query/kernel": ((8, 2, 4), (8, 8)),
        "out/kernel": ((2, 4, 8), (8, 8)),
        "Conv_0/kernel": ((3, 3, 4, 8), (36, 8)),
        "Conv_1/kernel": ((3, 3, 1, 8), None),
        "embed/embedding": ((16, 8), None),
        "lm_head/kernel": ((8, 16), None),
        "query/bias": ((2, 4), None),
    }
    params = {}
    for path, (shape, _) in shapes.items():
        module, name = path.split("/")
        leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
        params.setdefault(module, {})[name] = leaf
    leaves = {leaf.path: leaf.matrix for leaf in optax_muon.plan(params).leaves}
    assert leaves == {path: matrix for path, (_, matrix) in shapes.items()}


def tree():
    """Every module with the first line of its docstring, as the README shows it."""
    lines = []
    for folder in ("optax_muon", "examples", "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            about = ast.get_docstring(ast.parse(path.read_text())) or ""
            if about:
                name = str(path.relative_to(ROOT))
                lines.append(f"{name:<38}{about.splitlines()[0].rstrip('.')}")
    return "\n".join(lines)


def test_tree_is_complete():
    assert f"```\n{tree()}\n```" in section("The tree")


def test_results_are_those_of_the_committed_comparison(monkeypatch):
    folder = ROOT / "examples" / "gpt"
    monkeypatch.syspath_prepend(folder)
    import compare

    results = json.loads((folder / "results" / "compare.json").read_text())
    assert f"```\n{compare.table(results['rows'])}\n```" in section("Two commands")


@pytest.mark.usefixtures("benchmark_modules")
def test_speed_is_that_of_the_committed_benchmark():
    import report

    results = ROOT / "benchmarks" / "results" / "cpu.json"
    table = report.markdown(json.loads(results.read_text()))
    assert f"\n\n{table}\n\n" in section("Orthogonalization")


@pytest.mark.usefixtures("benchmark_modules")
def test_effects_are_those_of_the_committed_comparison():
    import conditions
    import convergence_table
    import part_tables
    import verdicts

    results = ROOT / "benchmarks" / "results" / "convergence.json"
    document = json.loads(results.read_text())
    text = section("Recipes")
    assert f"\n\n{convergence_table.excerpt(document)}\n\n" in text
    assert f"\n\n{convergence_table.across(document)}\n\n" in text
    for name in ("muon", "adamw", "adamw_split"):  # beside the example's own
        mean = statistics.mean(verdicts.finals(document, conditions.FIRST, name))
        assert f"`{name}` to {mean:.3f}" in section("Two commands")
    for table in (part_tables.lasting, part_tables.switched, part_tables.carried_over):
        assert f"\n\n{table(document)}\n\n" in text
    _, step, quartiles, seconds, _ = cells(part_tables.step_times(document), "muon")
    theirs = cells(part_tables.step_times(document), "adamw_split")[3]
    assert f"{step} times `adamw`'s (quartiles {quartiles})" in text
    assert f"after {seconds} seconds where that one takes {theirs}." in text
    rows = re.findall(r"^\|[^|]*\|([^|]*)\| `(.*)` \|$", text, flags=re.M)
    for name in convergence_table.names(document):
        cell = convergence_table.effect(document, name)
        if name in EFFECTS:
            assert [c.strip() for c, code in rows if EFFECTS[name] in code] == [cell]
    # Whatever is compared has its line, but for rivals, those told of beside the
    # tables, and a variant that is a matter of axes.
    elsewhere = {"muon", "muon_clip", "heads_apart", "optax_contrib_95"}
    elsewhere |= {"adamw", "adamw_split", "optax_contrib"}
    assert set(convergence_table.names(document)) - elsewhere == set(EFFECTS)


@pytest.mark.usefixtures("benchmark_modules")
def test_pods_are_those_of_the_committed_programs():
    import pod_table

    file = ROOT / "benchmarks" / "results" / "tpu_aot.json"
    results = json.loads(file.read_text())["results"]
    for table in (
        pod_table.programs(pod_table.compared(results["targets"])),
        pod_table.shares(results["targets"]),
        pod_table.shares(results["scaling"]),
    ):
        assert f"\n\n{table}\n\n" in section("Sharded training")
    times = pod_table.compile_times(results["compile_times"]).replace("\n", " ")
    assert times in section("Sharded training").replace("\n", " ")
