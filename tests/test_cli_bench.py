"""`bench`: what it times, how it counts, and what it writes; and the progress line."""

import io
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_muon import _cli_bench, _cli_matrices, _cli_timing
from optax_muon._cli import main
from optax_muon._cli_bench import OPTAX, OURS
from optax_muon._cli_matrices import Matrices
from optax_muon._cli_model import Model
from optax_muon._cli_progress import Progress
from tests import cli_models

STACKED = Matrices({"layers 0": (3, 4, 8), "fused 0": (4, 4), "fused 1": (4, 8)})


def test_matrices_of_a_model_and_of_shapes():
    model = Model(cli_models.stacked_parameters(), cli_models.STACKED_AXES, "")
    found = _cli_matrices.of_model(model)
    assert sorted(found.shapes.values()) == sorted(STACKED.shapes.values())
    counted = [((4, 8), 2), ((8, 2), 1)]
    found = _cli_matrices.of_shapes(counted)
    assert list(found.shapes.values()) == [(4, 8), (4, 8), (8, 2)]
    assert str(found) == "2 x 4 x 8, 1 x 8 x 2"


def test_both_optimizers_orthogonalize_the_same_matrices(rng):
    """Their scales differ by matrix, so each matrix is compared by its direction."""
    gradients = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in STACKED.shapes.items()
    }
    found = []
    for tx in (STACKED.ours(), STACKED.peer()):
        updates, _ = tx.update(gradients, tx.init(gradients), gradients)
        found.append({name: np.asarray(u, np.float64) for name, u in updates.items()})
    for name in STACKED.shapes:
        ours, peers = (
            u / np.linalg.norm(u, axis=(-2, -1), keepdims=True)
            for u in (found[0][name], found[1][name])
        )
        # Float32's eps, 1e-7, grown by the slope of the coefficients, 485.
        np.testing.assert_allclose(ours, peers, atol=1e-4)


def test_flops_are_those_of_the_direct_form():
    """2 T (2 m / n + 1) n^3 for n x m; ours skips blocks on CPU, or is Gram's."""

    def direct(n, m):
        return 2 * 5 * (2 * m / n + 1) * n**3

    matrices = Matrices({"a": (64, 64), "b": (3, 32, 8), "c": (512, 512)})
    expected = direct(64, 64) + 3 * direct(8, 32) + direct(512, 512)
    assert matrices.flops_of_optax("float32") == expected
    squares = Matrices({"a": (64, 64), "b": (2, 48, 48)})
    expected = direct(64, 64) + 2 * direct(48, 48)
    assert squares.flops_of_ours("float32", "tpu") == expected
    assert Matrices({"a": (64, 256)}).flops_of_ours("float32", "tpu") < direct(64, 256)


def test_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_cli_bench, "SAMPLE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    argv = ["bench", "--shape=16x32", "--count=2", "--rounds=3", "--dtype=bfloat16"]
    assert main(argv) == 0
    assert list(tmp_path.iterdir()) == []  # nothing is written unasked
    assert main([*argv, "--out=found.json"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    text = capsys.readouterr().out
    assert found["command"] == f"python -m optax_muon {' '.join(argv)} --out=found.json"
    assert found["versions"]["jax"] == jax.__version__
    assert found["hardware"] == {"platform": "cpu", "device": "cpu"}
    assert (found["matrices"], found["dtype"]) == ("2 x 16 x 32", "bfloat16")
    samples = found["samples"]
    assert {name: len(row) for name, row in samples.items()} == {OURS: 3, OPTAX: 3}
    for name, row in samples.items():
        assert found["median_seconds"][name] == np.median(row)
    rounds = [b / a for a, b in zip(samples[OURS], samples[OPTAX], strict=True)]
    assert found["ratio"]["median"] == np.median(rounds)
    assert f"takes {np.median(rounds):.3g} times as long" in text


def test_the_table_divides_flops_by_seconds():
    result = {
        "hardware": {"device": "abacus"},
        "matrices": "1 x 2 x 2",
        "dtype": "float32",
        "rounds": 1,
        "flops": {OURS: 4e12, OPTAX: 6e12},
        "median_seconds": {OURS: 0.5, OPTAX: 2.0},
        "ratio": {"median": 4.0, "low": 3.5, "high": 4.5},
    }
    lines = [line.split() for line in _cli_bench.shown(result).splitlines()]
    assert [OURS, "500", "4", "TFLOP", "8"] in lines
    assert [OPTAX, "2000", "6", "TFLOP", "3"] in lines


def test_too_large_is_told(monkeypatch, capsys):
    def by_turns(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(_cli_bench, "by_turns", by_turns)
    assert main(["bench", "--shape=3x4"]) == 2
    assert "1 x 3 x 4 do not fit cpu" in capsys.readouterr().err


def test_turns(monkeypatch):
    """With a clock that only work moves: 3 s and 5 s, the first calls slower."""
    now, order = 0.0, []

    def work(name, seconds):
        def run():
            nonlocal now
            now += seconds + 100 * (name not in order)
            order.append(name)

        return run

    monkeypatch.setattr(_cli_timing.time, "perf_counter", lambda: now)
    done = []
    runs = {"a": work("a", 3), "b": work("b", 5)}
    found = _cli_timing.by_turns(runs, 3, lambda: done.append(None), sample_seconds=6)
    assert found == {"a": [3, 3, 3], "b": [5, 5, 5]}
    assert len(done) == 2 * (_cli_timing.WARM_UPS + 3)
    # Two repeats make a sample of six seconds; every other round goes backwards.
    assert "".join(order) == "aabb" + "aabb" + "bbaa" + "aabb"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_progress_shows_after_a_while(kind):
    stream = kind()
    with Progress("working", 4, after=0.0, stream=stream) as progress:
        progress.advance()
        while not stream.getvalue():
            time.sleep(0.01)
    assert "working [" in stream.getvalue()
    assert "/4, 0 s" in stream.getvalue()
    assert stream.getvalue().startswith("\r") == (kind is Terminal)
    assert stream.getvalue().endswith("\n")


def test_progress_is_silent_before():
    stream = Terminal()
    with Progress("working", after=60.0, stream=stream):
        pass
    assert stream.getvalue() == ""
