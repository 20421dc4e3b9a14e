"""The benchmarks run, resume and report, on tiny matrices."""

import contextlib
import io
import json
import sys
from pathlib import Path

import jax
import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))

pytestmark = pytest.mark.usefixtures("benchmark_modules")


def run(out, *flags):
    """What a smoke run to `out` prints."""
    import bench

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        bench.main(["--smoke", "--out", str(out), *flags])
    return printed.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole smoke run without PyTorch: its file, and what it printed."""
    import peers

    out = tmp_path_factory.mktemp("bench") / "cpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers.TorchContestant, "available", lambda self: False)
        printed = run(out)
    return out, printed


@pytest.fixture
def measured(monkeypatch):
    """The cases that are measured from here on, instead of measuring them."""
    import bench

    cases = []

    def measure_case(part, name, planned, rounds):
        cases.append((part, name))
        return {"rounds": rounds}

    monkeypatch.setattr(bench, "measure_case", measure_case)
    return cases


SMOKE = {
    "gemm": ["float32"],
    "update": ["smoke_mlp", "smoke_conv"],
    "compile": ["smoke_1x8", "smoke_2x8"],
    "memory": ["smoke_mlp", "smoke_conv"],
}
ALL = [(part, name) for part, names in SMOKE.items() for name in names]


def test_a_run_stores_what_it_measured_and_in_what(finished):
    document = json.loads(finished[0].read_text())
    assert {part: list(rows) for part, rows in document["results"].items()} == SMOKE
    assert document["command"] == "python benchmarks/bench.py --smoke"
    assert document["environment"]["jax"] == jax.__version__
    assert {"python", "jaxlib", "optax", "optax_muon", "numpy", "torch", "cpu"} < set(
        document["environment"]
    )
    assert str(finished[0].parent) not in finished[0].read_text()

    row = document["results"]["update"]["smoke_mlp"]
    assert list(row["samples"]) == ["ours", "optax", "gemm_8"]
    rate = "standard-form rate of ours / GEMM"
    assert list(row["ratios"]) == ["optax / ours", "ours / limit", rate]
    for found in (*row["seconds"].values(), *row["ratios"].values()):
        assert found["count"] == row["rounds"] == 2
        assert found["quartiles"][0] <= found["median"] <= found["quartiles"][1]

    # Both run five steps of three products: per shape in a loop, per leaf unrolled.
    row = document["results"]["compile"]["smoke_2x8"]
    assert row["programs"]["optax"]["compiled_dots"] == 2 * 5 * 3
    assert 0 < row["programs"]["ours"]["compiled_dots"] < 2 * 5 * 3


def test_the_tables_show_every_case_and_every_acceptance_line(finished):
    import claims
    import report

    out, printed = finished
    document = json.loads(out.read_text())
    assert printed == report.render(document) + "\n" == run(out, "--table")
    for names in SMOKE.values():
        for name in names:
            assert name in printed
    acceptance = printed.split("Acceptance\n")[1].splitlines()
    lines = claims.claims(document)
    assert len(lines) == 15
    for claim, line in zip(lines, acceptance[3:], strict=True):
        assert line.startswith(claim.what)
        assert line.endswith(claim.verdict)
    torch = [claim for claim in lines if "torch" in claim.what]
    assert [claim.verdict for claim in torch] == ["not measured"] * 4


def test_a_finished_run_measures_nothing_again(finished, measured, capsys):
    before = finished[0].read_text()
    assert run(finished[0]) == finished[1]
    assert measured == []
    assert finished[0].read_text() == before
    assert "--redo measures it anew" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_where_it_stopped(measured, tmp_path, monkeypatch):
    import bench

    out = tmp_path / "bench.json"
    measure = bench.measure_case

    def interrupted(*arguments):
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bench, "measure_case", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(out)
    assert measured == ALL[:3]
    bench.measure(bench.parse(["--smoke", "--out", str(out)]))
    assert measured == ALL


def test_parts_and_cases_are_measured_anew_on_request(finished, measured, tmp_path):
    import bench

    out = tmp_path / "bench.json"
    out.write_text(finished[0].read_text())
    flags = ["--parts", "update", "memory", "--cases", "smoke_conv", "--redo"]
    rounds = ["--rounds", "7"]
    document = bench.measure(
        bench.parse(["--smoke", "--out", str(out), *flags, *rounds])
    )
    assert measured == [("update", "smoke_conv"), ("memory", "smoke_conv")]
    assert document["results"]["update"]["smoke_conv"]["rounds"] == 7
    assert document["results"]["update"]["smoke_mlp"]["rounds"] == 2


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--cases", "alexnet"], r"--cases = alexnet: no such case.*smoke_mlp"),
        (["--parts", "gemm", "--cases", "smoke_mlp"], "no such case in gemm"),
        (["--rounds", "0"], r"--rounds = 0"),
        (["--table"], r"--out = bench.json: there is no such file"),
    ],
)
def test_requests_that_cannot_be_met_are_explained(flags, reason, tmp_path):
    with pytest.raises(SystemExit, match=reason):
        run(tmp_path / "bench.json", *flags)


def test_rows_of_another_machine_are_not_added_to(finished, measured, tmp_path):
    import bench

    out = tmp_path / "bench.json"
    document = json.loads(finished[0].read_text())
    document["environment"] |= {"jax": "0.1", "cpu": "abacus"}
    out.write_text(json.dumps(document))
    with pytest.raises(SystemExit, match=r"another jax and cpu.*--redo"):
        run(out)
    fresh = ["--smoke", "--out", str(out), "--redo", "--cases", "float32"]
    results = bench.measure(bench.parse(fresh))["results"]
    assert results.keys() == {"gemm"}


def test_rows_of_different_sources_are_pointed_out(finished):
    import report

    document = json.loads(finished[0].read_text())
    assert "CAUTION" not in report.render(document)
    document["results"]["update"]["smoke_mlp"]["source"] = "another"
    assert "CAUTION: rows of 2 states" in report.render(document)


def test_verdicts_are_those_of_the_bounds():
    from claims import Claim

    def verdict(measured, bound, at_least):
        return Claim("", measured, bound, at_least).verdict

    assert verdict(2.2, 2.2, True) == verdict(1.2, 1.2, False) == "pass"
    assert verdict(2.19, 2.2, True) == verdict(1.21, 1.2, False) == "FAIL"
    assert verdict(None, 1.2, False) == "not measured"


def test_every_platform_has_all_its_claims():
    import claims
    import report

    for platform, count in {
        # Rivals, limits, compile, memory; on a GPU: rivals, wide cases, ...
        "cpu": 7 * 3 + 4 + 4 + 7 * 2,
        "gpu": 2 * (12 * 1 + 3 + 4 + 12 * 2),
    }.items():
        here = {"platform": platform, "device": "", "cpu": "", "cpu_count": 1}
        versions = "python jax jaxlib optax optax_muon numpy torch"
        here |= dict.fromkeys(versions.split())
        document = {
            **{"command": "", "smoke": False, "environment": here, "results": {}}
        }
        found = claims.claims(document)
        assert {claim.verdict for claim in found} == {"not measured"}
        assert count == len(found)
        assert ("llama" in report.render(document)) == (platform == "gpu")
        assert ("llama" in report.markdown(document)) == (platform == "gpu")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_shadows_the_standard_library(path):
    assert path.stem not in sys.stdlib_module_names
