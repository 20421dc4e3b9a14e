"""The comparison of optimizers: equal budgets, and pieces that fit together."""

import dataclasses
import functools
import math

import pytest

from tests.convergence.small import forever, named, small_task, won


def test_each_gets_as_many_trials_in_turn_on_the_tuning_seed_alone(
    task, runs, tmp_path
):
    import ledger
    import tuning

    assert not {ledger.TUNING_SEED, *ledger.CONFIRMING_SEEDS} & set(ledger.SEEDS)
    book = ledger.Ledger(tmp_path / "rows.json")
    tuning.tune(task, named("a", "b", "c"), book, forever)
    trials, confirmations = runs[: 3 * task.trials], runs[3 * task.trials :]
    assert [name for _, name, _, _ in trials] == ["a", "b", "c"] * task.trials
    assert {seed for *_, seed in trials} == {ledger.TUNING_SEED}
    # Then the best two of each, on two more seeds.
    assert [(seed, name) for _, name, _, seed in confirmations] == [
        (seed, name) for seed in (101, 102) for name in "aabbcc"
    ]
    for name in "abc":
        settings = [row["settings"] for row in book.rows("tune", "gpt", name)]
        assert len(settings) == task.trials
        assert all(settings.count(one) == 1 for one in settings)
    # The search climbs: 0.016, 0.032, and from there 0.064.
    assert tuning.best("gpt", named("a")[0], book) == {"learning_rate": 0.064}


def test_a_search_goes_on_where_it_stopped_and_repeats_nothing(task, runs, tmp_path):
    import convergence
    import ledger
    import tuning

    def until(count):
        def check():
            if len(runs) == count:
                raise convergence.BudgetSpentError

        return check

    path = tmp_path / "rows.json"
    for count in (2, 4):
        with pytest.raises(convergence.BudgetSpentError):
            tuning.tune(task, named("a", "b"), ledger.Ledger(path), until(count))
    book = ledger.Ledger(path)
    tuning.tune(task, named("a", "b"), book, forever)
    in_pieces = list(runs)
    runs.clear()
    whole = ledger.Ledger(tmp_path / "whole.json")
    tuning.tune(task, named("a", "b"), whole, forever)
    assert in_pieces == runs
    assert book.document["results"] == whole.document["results"]
    runs.clear()
    tuning.tune(task, named("a", "b"), ledger.Ledger(path), forever)
    assert runs == []
    # Who comes later is given the same, and nobody else anything.
    tuning.tune(task, named("a", "b", "late"), ledger.Ledger(path), forever)
    assert [name for _, name, _, _ in runs] == ["late"] * (task.trials + 4)


def test_a_search_ends_where_ladders_do(runs, tmp_path):
    import ledger
    import tuning
    from contestants import Contestant

    one = Contestant(
        "a", "a()", {"learning_rate": 1.0}, None, {"learning_rate": (1.0, 2.0)}
    )
    book = ledger.Ledger(tmp_path / "rows.json")
    tuning.tune(small_task("gpt"), [one], book, forever)
    assert [settings for _, _, settings, _ in runs[:2]] == [
        {"learning_rate": 1.0},
        {"learning_rate": 2.0},
    ]
    assert tuning.tuned(small_task("gpt"), one, book) == {"learning_rate": 1.0}
    with pytest.raises(ValueError, match=r"start of b: learning_rate=3.0 is not on"):
        Contestant("b", "", {"learning_rate": 3.0}, None)


def test_reported_runs_use_the_best_settings_on_the_other_seeds(task, runs, tmp_path):
    import ledger
    import tuning
    from store import UsageError

    book = ledger.Ledger(tmp_path / "rows.json")
    with pytest.raises(UsageError, match=r"a has had 0 of its 3 trials on gpt"):
        tuning.report(task, named("a", "b"), book, forever)
    tuning.tune(task, named("a", "b"), book, forever)
    runs.clear()
    tuning.report(task, named("a", "b"), book, forever)
    assert [(seed, name) for _, name, _, seed in runs] == [
        (seed, name) for seed in (0, 1, 2, 3, 4) for name in "ab"
    ]
    for _, name, settings, _ in runs:
        rows = book.rows("tune", "gpt", name)
        losses = [row["validation_loss"] or math.inf for row in rows]
        assert settings == rows[losses.index(min(losses))]["settings"]
    runs.clear()
    tuning.report(task, named("a", "b"), book, forever)
    assert runs == []
    # More trials find something better for b: its seeds are run anew, and only its.
    more = dataclasses.replace(task, trials=8)
    tuning.tune(more, named("a", "b"), book, forever)
    runs.clear()
    tuning.report(more, named("a", "b"), book, forever)
    assert [name for _, name, _, _ in runs] == ["b"] * 5
    assert len(book.rows("seeds", "gpt", "b")) == 5


def test_other_tasks_begin_at_the_best_of_the_first(task, runs, tmp_path):
    import ledger
    import tuning
    from store import UsageError

    wide = small_task("gpt_width_128", trials=1)
    book = ledger.Ledger(tmp_path / "rows.json")
    with pytest.raises(
        UsageError, match=r"a: its search on gpt is not over\. Run --task"
    ):
        tuning.tune(wide, named("a"), book, forever)
    tuning.tune(task, named("a"), book, forever)
    tuning.tune(wide, named("a"), book, forever)
    assert runs[-1][::2] == ("gpt_width_128", {"learning_rate": 0.064})


def test_the_best_of_the_first_task_and_the_default_go_on(runs, tmp_path, monkeypatch):
    import conditions
    import convergence
    import field
    import ledger
    from store import UsageError

    known = named("a", "b", "c", "d")
    names = {one.name: one for one in known} | field.competitors()
    monkeypatch.setattr(field, "competitors", lambda: names)
    monkeypatch.setattr(conditions, "task", functools.cache(small_task))
    out = ["--out", str(tmp_path / "rows.json"), "--part", "tune", "seeds"]
    book = ledger.Ledger(tmp_path / "rows.json")
    with pytest.raises(
        UsageError, match=r"open while runs on gpt are missing, of a, b"
    ):
        convergence.entrants("autoencoder", None, book)
    convergence.main([*out, "--task", "gpt"])
    assert {name for _, name, _, _ in runs} == set(names)
    runs.clear()
    convergence.main([*out, "--task", "autoencoder"])
    gone_on = {name for _, name, _, _ in runs}
    assert {"muon", "adamw", "adamw_split", "optax_contrib"} < gone_on
    assert len(gone_on) == 4 + 3


def test_runs_that_are_equal_bit_by_bit_take_one_place(tmp_path):
    import convergence
    import ledger

    book = ledger.Ledger(tmp_path / "rows.json")
    known = {one.name: one for one in named("a", "b", "c", "d", "e")}
    for name, loss in zip(known, (1.5, 1.2, 1.2, 1.3, 1.4), strict=True):
        for part, rows in won(name, {}).items():
            for case, row in rows.items():
                book.put(part, case, row)
        for seed in ledger.SEEDS:
            row = {"settings": {}, "validation_loss": loss + seed}
            book.put("seeds", f"gpt/{name}/{seed}", row)
    assert convergence.leaders(known, book) == ["b", "d", "e"]


def test_rows_of_other_conditions_are_refused(task, tmp_path, monkeypatch):
    import ledger
    import machine
    from store import UsageError

    path = tmp_path / "rows.json"
    book = ledger.Ledger(path)
    book.define("tasks", "gpt", task.conditions())
    book.define("contestants", "a", named("a")[0].definition())
    book.put("tune", "gpt/a/0", {"settings": {}})

    again = ledger.Ledger(path)
    again.define("tasks", "gpt", task.conditions())
    again.define("contestants", "late", named("late")[0].definition())
    longer = dataclasses.replace(task, steps=75).conditions()
    with pytest.raises(UsageError, match=r"gpt \(of its tasks\) was .* another steps"):
        again.define("tasks", "gpt", longer)
    changed = named("a")[0].definition() | {"about": "b()"}
    with pytest.raises(UsageError, match=r"another about.*--forget a"):
        again.define("contestants", "a", changed)
    again.put("times", "gpt", {"seconds": {"a": 1.0}})
    assert again.forget("a") == 3  # and the times, which were taken in turn
    again.define("contestants", "a", changed)
    assert ledger.Ledger(path).rows("tune", "gpt", "a") == []

    here = machine.environment()
    monkeypatch.setattr(machine, "environment", lambda: here | {"jax": "0.1"})
    with pytest.raises(UsageError, match=r"another jax\. Name another --out"):
        ledger.Ledger(path)
    monkeypatch.setattr(machine, "environment", lambda: here | {"torch": "9"})
    ledger.Ledger(path)


def test_rows_of_the_default_alone_go_with_it(tmp_path):
    import ledger

    book = ledger.Ledger(tmp_path / "rows.json")
    for name in ("muon", "a"):
        book.define("contestants", name, {})
    for part in ("momenta", "switching", "transfer"):
        book.put(part, "gpt/150/100", {})
    book.put("momenta", "gpt/150/b/100", {})
    book.define("contestants", "b", {})
    assert book.forget("a") == 1
    assert book.forget("muon") == 4
    assert book.forget("b") == 2


def test_two_processes_add_to_one_file(tmp_path):
    import ledger

    path = tmp_path / "rows.json"
    first, second = ledger.Ledger(path), ledger.Ledger(path)
    first.put("tune", "gpt/a/0", {"loss": 1})
    second.put("tune", "gpt/b/0", {"loss": 2})
    first.put("tune", "gpt/a/1", {"loss": 3})
    assert list(ledger.Ledger(path).document["results"]["tune"]) == [
        *("gpt/a/0", "gpt/b/0", "gpt/a/1")
    ]


def test_the_command_line_says_what_it_cannot_do(runs, tmp_path, monkeypatch, capsys):
    import conditions
    import convergence

    monkeypatch.setattr(conditions, "task", functools.cache(small_task))
    out = ["--out", str(tmp_path / "rows.json")]
    for flags, reason in (
        (["--report"], "there is no such file"),
        (["--contestants", "sgd"], r"sgd: there is no such contestant.*Choose among"),
        (["--contestants", "muon", "--part", "times"], "times chooses for itself"),
        (["--task", "autoencoder", "--part", "lengths"], "lengths chooses for itself"),
        (["--part", "seeds"], "has had 0 of its 3 trials"),
    ):
        with pytest.raises(SystemExit, match=reason):
            convergence.main([*out, *flags])
    convergence.main([*out, "--budget-minutes", "0"])
    assert "minutes are spent" in capsys.readouterr().err
    assert runs == []
    convergence.main([*out, "--contestants", "muon", "--task", "gpt"])
    assert len(runs) == 3 + 2 * 2 + 5
    convergence.main([*out, "--report"])
    assert capsys.readouterr().out == "wrote rows.md\n"
    assert "| `muon` |" in (tmp_path / "rows.md").read_text()
    with pytest.raises(SystemExit, match=r"--forget = 0: no task or contestant of"):
        convergence.main([*out, "--forget", "0"])
    convergence.main([*out, "--forget", "muon"])
    assert "dropped 13 rows" in capsys.readouterr().out


def test_the_mean_over_tuning_seeds_decides(task, tmp_path):
    """Not the seed on which one of them was the best by luck."""
    import ledger
    import selection

    book = ledger.Ledger(tmp_path / "rows.json")
    losses = {0: (1.0, 1.5, 1.5), 1: (1.1, 1.2, 1.2), 2: (1.3, 0.1, 0.1)}
    for number, (first, *others) in losses.items():
        row = {"settings": {"learning_rate": number}}
        book.put("tune", f"gpt/a/{number}", row | {"validation_loss": first})
        if number < 2:
            assert selection.winner(book.document, "gpt", "a") is None
        for seed, loss in zip((101, 102), others, strict=True):
            case = selection.confirming_case("gpt", "a", number, seed)
            book.put("confirm", case, row | {"validation_loss": loss})
    # The third was not among the best two.
    assert selection.winner(book.document, "gpt", "a") == {"learning_rate": 1}
    case = selection.confirming_case("gpt", "a", 1, 102)
    book.put("confirm", case, row | {"validation_loss": None})  # it diverged
    assert selection.winner(book.document, "gpt", "a") == {"learning_rate": 0}
