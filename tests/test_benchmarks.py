"""The benchmarks run, resume and report on tiny matrices, and count FLOPs rightly."""

import contextlib
import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
FILES = sorted(FOLDER.glob("*.py"))
NAMES = {path.stem for path in FILES}


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The files import each other by name; no other test should see them, nor we its.

    The GPT example has a `report` as well.
    """
    others = {name: sys.modules.pop(name) for name in NAMES & set(sys.modules)}
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in NAMES & set(sys.modules):
        del sys.modules[name]
    sys.modules.update(others)


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


def test_bfloat16_contestants_run():
    """What accelerators race, here on a CPU."""
    import peers
    import shapes

    case = shapes.SMOKE[1]
    gradients = peers.gradients(case)
    field = peers.contestants("gpu")
    dtypes = {"ours": "float32", "optax": "float32"}
    low = {"ours_bfloat16": "bfloat16", "optax_bfloat16": "bfloat16"}
    assert {one.name: one.dtype for one in field} == dtypes | low
    for one in field:
        one.prepare(case, gradients)(2)


def test_contestants_compute_the_same_update():
    import peers
    import shapes

    for case in shapes.SMOKE:
        mine, theirs = (
            first_update(one, case, peers.gradients(case))
            for one in (peers.OURS, peers.OPTAX)
        )
        for name, shape in case.leaves:
            fan_in, fan_out = shapes.as_matrix(shape)
            scale = max(1, fan_out / fan_in) ** 0.5  # optax.contrib's core has none
            # Two orders of float32 sums; seen: 2e-6, times 10 for other machines.
            np.testing.assert_allclose(mine[name], scale * theirs[name], atol=2e-5)


@pytest.mark.peers
def test_torch_in_float32_computes_the_same_update():
    import peers
    import shapes
    import torch

    cast = torch.Tensor.bfloat16
    case = shapes.SMOKE[1]
    gradients = peers.gradients(case)
    optimizer = peers.TORCH_FLOAT32.optimizer(case, gradients)
    with peers.TORCH_FLOAT32.iteration():
        optimizer.step()
    assert torch.Tensor.bfloat16 is cast
    expected = first_update(peers.OURS, case, gradients)
    for (name, shape), parameter in zip(
        case.leaves, optimizer.param_groups[0]["params"], strict=True
    ):
        update = -parameter.detach().numpy().T.reshape(shape) / 1e-3  # the default rate
        np.testing.assert_allclose(update, expected[name], atol=2e-5)  # as above


def first_update(contestant, case, gradients):
    transformation = contestant.transformation(case)
    state = transformation.init(gradients)
    return jax.jit(transformation.update)(gradients, state)[0]


def test_contestants_run_once_a_round_in_rotating_order(monkeypatch):
    import timing

    order = []
    monkeypatch.setattr(timing, "PAUSE", 0)
    taken = {"a": 0.3, "b": 0.001, "c": 1.0}

    def seconds(name, repeats):
        order.append((name, repeats))
        return taken[name] * repeats

    monkeypatch.setattr(timing, "seconds", seconds)
    monkeypatch.setattr(timing, "warm_up", lambda run, wanted: 2 if run == "b" else 1)
    samples = timing.interleave({name: name for name in taken}, 3, 0.0)
    assert "".join(name for name, _ in order) == "abcacbcab"
    assert set(order) == {("a", 1), ("b", 2), ("c", 1)}
    assert samples == {name: [value] * 3 for name, value in taken.items()}


def test_summaries_are_quartiles_and_ratios_go_round_by_round():
    import timing

    expected = {"median": 3.0, "quartiles": [2.0, 4.0], "count": 5}
    assert timing.summary([5, 1, 4, 2, 3]) == expected
    # The ratio of medians would be 2 / 2 = 1.
    assert timing.ratios([1, 2, 8], [2, 1, 2])["median"] == 2


class Products:
    """Matrix products that count their FLOPs."""

    def __init__(self):
        self.flops = 0

    def __call__(self, x, y):
        (rows, inner), (_, columns) = x.shape, y.shape
        self.flops += 2 * rows * inner * columns
        return x @ y


ROW = (3.4445, -4.7750, 2.0315)


def direct(x, steps, product):
    a, b, c = ROW
    for _ in range(steps):
        gram = product(x, x.T)
        x = a * x + product(b * gram + c * product(gram, gram), x)
    return x


def on_gram(x, steps, restarts, product):
    """The same with X = Q X_0 and R = X X^T, begun anew before the steps `restarts`."""
    a, b, c = ROW
    begins = {0, *restarts}
    for step in range(steps):
        if step in begins:
            x = product(q, x) if step else x
            q, gram = None, product(x, x.T)
        z = b * gram + c * product(gram, gram)  # p(X) = (a I + Z) X
        q = a * np.eye(len(x)) + z if q is None else a * q + product(z, q)
        if step + 1 not in begins | {steps}:
            half = a * gram + product(gram, z)
            gram = a * half + product(z, half)
    return product(q, x)


@pytest.mark.parametrize("shape", [(4, 4), (4, 10), (6, 24)])
def test_flops_are_those_of_the_products(shape, rng):
    import limits

    x = rng.normal(size=shape)
    x /= np.linalg.norm(x)
    counted = Products()
    expected = direct(x, 5, counted)
    assert limits.direct_flops(*shape, 5) == counted.flops
    for restarts in ([], [2], [2, 4]):
        counted = Products()
        # Float64 rounding, grown by five steps of slope 3.4; seen: 3e-13.
        np.testing.assert_allclose(
            on_gram(x, 5, restarts, counted), expected, atol=1e-10
        )
        assert limits.gram_flops(*shape, 5, len(restarts)) == counted.flops


def test_the_limit_takes_the_cheaper_form_at_the_rate_of_its_size():
    import limits
    from shapes import Case

    # In n^3: a square 30 directly, 36 on Gram matrices; alpha = 4: 90 against 60.
    case = Case("", (("a", (10, 10)), ("b", (40, 10)), ("c", (10, 40))), 1)
    assert limits.limit_seconds(case, 5, "float32", {8: 1.0, 16: 1e3}) == 30 + 2 * 60
    assert limits.fewest_flops(10, 40, 5, "bfloat16") == 70_000
    assert limits.standard_flops(case, 5) == 30_000 + 2 * 90_000
    large = Case("", (("a", (100, 100)),), 1)  # beyond the sizes: the largest of them
    assert limits.limit_seconds(large, 5, "float32", {8: 1e6, 16: 3e7}) == 1
    assert limits.sizes_of(case, (8, 12, 16)) == (12,)
    assert limits.nearest_size(12, (8, 12, 16)) == 12


def test_a_gemm_counts_its_chain_and_keeps_its_norm():
    import limits

    gemm = limits.Gemm(8, "float32", flops=10 * 2 * 8**3, elements=1)
    assert gemm.flops == 10 * 2 * 8**3
    assert limits.Gemm(8, "float32", flops=1, elements=3 * 64).flops == 4 * 3 * 2 * 8**3
    gemm(1)


def test_shapes_are_those_of_the_models():
    import programs
    import shapes

    cases = {case.name: case for case in shapes.EVERYWHERE + shapes.ACCELERATORS}
    # torchvision's ResNet-18 has 11,689,512 parameters, of which 513,000 are the
    # classifier's and 9,600 the norms'.
    assert cases["resnet18"].parameters == 11_689_512 - 513_000 - 9_600
    assert len(cases["resnet18"].leaves) == 20
    for name, layers, d in [
        *(("gpt_4x384", 4, 384), ("gpt_4x384_split", 4, 384)),
        *(("gpt_2x768", 2, 768), ("gpt_2x768_split", 2, 768)),
        *(("gpt2_small", 12, 768), ("gpt2_medium", 24, 1024)),
    ]:
        assert cases[name].parameters == layers * 12 * d**2
    # Llama 3 8B is 32 such layers, an embedding, a head, and two norms a layer and one.
    assert cases["llama_8b_layer"].parameters * 32 == 8_030_261_248 - (
        2 * 128_256 * 4096 + 65 * 4096
    )
    stacks = {(384, 1152): 4, (384, 384): 4, (384, 1536): 8}
    assert cases["gpt_4x384"].stacks() == stacks
    assert programs.largest_stack(cases["gpt_4x384"], "bfloat16") == 8 * 384 * 1536 * 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_shadows_the_standard_library(path):
    assert path.stem not in sys.stdlib_module_names
