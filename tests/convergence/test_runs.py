"""Runs of the comparison of optimizers: real ones, their times, and the figure."""

import functools
import inspect
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from tests.convergence.small import SHAPE, forever, letters, small_task


def test_a_real_run_learns_repeats_itself_and_stops_when_it_diverges(task):
    import field
    import machine
    import training

    muon = field.competitors()["muon"]
    row = training.measure(task, muon, muon.start, 0, 25)
    assert [step for step, _ in row["validation"]] == [25, 50]
    # Better than any byte, log 256, and no better than any letter.
    assert np.log(26) < row["validation_loss"] == row["validation"][-1][1] < 4.5
    assert row["source"] == machine.source()
    assert row["program"] == training.program() != row["source"]
    at_the_end = training.measure(task, muon, muon.start, 0)
    assert at_the_end["validation_loss"] == row["validation_loss"]
    other = training.measure(task, muon, muon.start, 1)
    assert other["validation_loss"] != row["validation_loss"]

    wild = muon.start | {"rest_learning_rate": 1e38}
    lost = training.measure(task, muon, wild, 0, 25)
    assert lost["validation_loss"] is None
    assert json.loads(json.dumps(lost, allow_nan=False))["validation"] == []


def test_a_fingerprint_is_of_names_and_contents(tmp_path):
    import machine
    import training

    def fingerprint(**files):
        for path in tmp_path.iterdir():
            path.unlink()
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return machine.fingerprint(tmp_path, tmp_path.glob("*.py"))

    seen = [
        fingerprint(a="1", b="2"),
        fingerprint(a="1", b="3"),
        fingerprint(a="1", c="2"),
        fingerprint(a="1"),
    ]
    assert len(set(seen)) == 4
    assert fingerprint(b="2", a="1") == seen[0]
    # What decides a run, each of them there.
    names = {path.name for path in training.DECIDES}
    assert {"training.py", "field.py", "rivals.py", "model.py", "loop.py"} <= names
    assert all(path.exists() for path in training.DECIDES)


def test_a_run_is_that_of_the_example(task):
    import field
    import training
    from gpt_example import loop, model, recipes

    settings, shape = recipes.TUNED["muon"], model.GPTConfig(**SHAPE)
    start = settings | {"momentum": default(optax_muon.muon, "momentum")}
    config = loop.TrainConfig(batch=2, steps=50, seed=3, evaluate_every=50)
    optimizer = recipes.build("muon", settings, config.steps)
    _, history = loop.train(shape, config, letters(), optimizer, label="")
    row = training.measure(task, field.DEFAULT, start, 3)
    # Sums in another order: seen 2e-7 after these steps, times 100 for other machines.
    assert row["validation_loss"] == pytest.approx(history.final, abs=2e-5)


def default(function, argument):
    return inspect.signature(function).parameters[argument].default


def test_all_that_compete_can_be_built_and_step(task):
    import field
    import training

    for one in field.competitors().values():
        begin, advance, _ = training.programs(task, one)
        params = task.start(0)
        state = training.State(params, begin(params, one.start))
        batches = next(task.chunks(0))[1]
        abstract = jax.eval_shape(advance, state, one.start, batches)[0]
        assert jax.tree.structure(abstract) == jax.tree.structure(state)


def test_rollfast_is_a_peer_where_it_is_installed(task, monkeypatch):
    import machine
    import rivals
    import training

    module = types.ModuleType("rollfast")
    monkeypatch.setitem(sys.modules, "rollfast", module)
    monkeypatch.setattr(machine, "version", lambda package: None)
    assert "not installed" in rivals.absent()["rollfast"]
    monkeypatch.setattr(machine, "version", lambda package: "0.2.1")
    assert "0.2.1 has no Muon" in rivals.absent()["rollfast"]
    # 1.3.0 has the names and arguments of optax.contrib.
    module.muon = optax.contrib.muon
    module.MuonDimensionNumbers = optax.contrib.MuonDimensionNumbers
    assert rivals.absent() == {}
    peer, params = rivals.rollfast_muon(), task.start(0)
    expected = training.programs(task, rivals.CONTRIB)[0](params, peer.start)
    found = training.programs(task, peer)[0](params, peer.start)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert "0.2.1" in peer.about


def test_steps_are_timed_for_all_at_once(task, tmp_path, monkeypatch):
    import field
    import ledger
    import steps

    monkeypatch.setattr(steps, "ROUNDS", 3)
    book = ledger.Ledger(tmp_path / "rows.json")
    steps.time_steps(task, [field.DEFAULT], book, forever)
    row = book.row("times", "gpt")
    assert row["by_adamw"]["adamw"]["median"] == 1
    for name in ("muon", "adamw"):
        median = row["seconds"][name]["median"]
        assert row["samples"][name][0] > 0
        assert median == pytest.approx(np.median(row["samples"][name]), rel=1e-4)
    by_adamw = np.divide(row["samples"]["muon"], row["samples"]["adamw"])
    # Samples are kept to five digits.
    assert row["by_adamw"]["muon"]["median"] == pytest.approx(
        np.median(by_adamw), rel=1e-3
    )
    steps.time_steps(task, [field.DEFAULT], book, forever)
    assert book.row("times", "gpt") is row


def test_transfer_runs_are_drawn(runs, tmp_path, monkeypatch):
    import convergence
    import ledger
    import part_tables
    import transfer

    monkeypatch.setattr(
        transfer, "task", functools.cache(lambda width: small_task(f"transfer_{width}"))
    )
    monkeypatch.setattr(transfer, "WIDTHS", (32, 64))
    out = tmp_path / "rows.json"
    convergence.main(["--out", str(out), "--part", "transfer"])
    assert len(runs) == 2 * 2 * 7 * 2
    assert {seed for *_, seed in runs} == {0, 1}
    runs.clear()
    convergence.main(["--out", str(out), "--part", "transfer"])
    assert runs == []
    book = ledger.Ledger(out)
    case = "transfer_64/mup/0.064/1"
    other = book.row("transfer", case)
    settings = other["settings"] | {"momentum": 0.5}
    book.put("transfer", case, other | {"settings": settings})
    assert not transfer.is_whole(book.document, 64)
    convergence.main(["--out", str(out), "--part", "transfer"])
    assert len(runs) == 1  # of other settings than today's
    document = ledger.load(out)
    # 0.128 and 0.256 diverged.
    losses = dict(transfer.curve(document, 64, "adam_rms"))
    assert list(losses) == [0.004, 0.008, 0.016, 0.032, 0.064]
    # The mean over seeds of one rung, decay 0.1, and a thousandth for seed 1.
    assert losses[0.032] == pytest.approx(1.1005, abs=1e-4)
    book = ledger.Ledger(out)
    # At width 64 a lower rate of "mup" is better, and the best of width 32 diverges.
    for rate, loss in ((0.016, 0.0505), (0.064, None)):
        case = f"transfer_64/mup/{rate}/0"
        row = book.row("transfer", case) | {"validation_loss": loss}
        book.put("transfer", case, row)
    lines = part_tables.carried_over(book.document).splitlines()
    # Seed 1 has two rungs, decay and a thousandth, 2.101: the mean is 1.076.
    assert lines[-2:] == [
        "| 32 | 0.064 | 0.101 | +0.000 | 0.064 | 0.101 | +0.000 |",
        "| 64 | 0.064 | 0.101 | +0.000 | 0.016 | 1.076 | diverged |",
    ]
    monkeypatch.setattr(transfer, "WIDTHS", (32, 64, 128))  # 128 has not run
    assert part_tables.carried_over(book.document).splitlines() == lines
    for rate in transfer.TRIED["mup"]:
        case = f"transfer_64/mup/{rate}/0"
        row = book.row("transfer", case) | {"validation_loss": None}
        book.put("transfer", case, row)
    *_, last = part_tables.carried_over(book.document).splitlines()
    assert last.endswith(" | diverged | diverged | diverged |")
    monkeypatch.setattr(transfer, "WIDTHS", (128, 64))  # nothing to hold 64 against
    assert part_tables.carried_over(book.document) is None
    monkeypatch.setattr(transfer, "WIDTHS", (32, 64))
    book.define("tasks", "gpt", small_task("gpt").conditions())
    convergence.main(["--out", str(out), "--report"])
    drawn = (tmp_path / "transfer.svg").read_bytes()
    assert b"</svg>" in drawn
    convergence.main(["--out", str(out), "--report"])
    assert (tmp_path / "transfer.svg").read_bytes() == drawn


def test_a_run_is_told_the_largest_logits(task, monkeypatch):
    """Of each head, over the pairs that attention sees; and only one that clips is."""
    import field
    import training

    params, batch = task.start(0), task.batch(0, 0)
    seen = []
    attend = jax.nn.dot_product_attention

    def watched(query, key, value, **options):
        logits = jnp.einsum("bihd,bjhd->bhij", query, key) / np.sqrt(query.shape[-1])
        largest = jnp.where(np.tri(query.shape[1]), logits, -np.inf).max((0, 2, 3))
        jax.debug.callback(seen.append, largest, ordered=True)
        return attend(query, key, value, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", watched)
    task.loss(params, batch)
    jax.effects_barrier()
    found = task.max_logits(params, batch)["blocks"]
    for number, expected in enumerate(seen):
        logits = found[number]["attention"]["max_logits"]
        np.testing.assert_allclose(logits, expected, rtol=1e-5)  # float32
    assert len(seen) == SHAPE["layers"]

    clip = field.competitors()["muon_clip"]
    row = training.measure(task, clip, clip.start, 0)
    assert np.log(26) < row["validation_loss"] < 4.5


def test_scion_is_the_recipe(task):
    """But for radii that the search may change."""
    import field

    params = task.start(0)
    settings = field.SCION.start | {"others": 1.0, "momentum": 0.9}
    ours = field.scion(settings, lambda peak: peak)
    recipe = optax_muon.scion(settings["learning_rate"])
    gradients = jax.tree.map(jnp.cos, params)
    found, expected = (
        tx.update(gradients, tx.init(params), params)[0] for tx in (ours, recipe)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),  # float32
        found,
        expected,
    )
