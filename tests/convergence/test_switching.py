"""What a user of AdamW gets who changes the optimizer and nothing else."""

import inspect

import optax_muon
from tests.convergence.small import forever, small_task, won
from tests.convergence.test_tables import document, rows

ADAMW = {
    "learning_rate": 0.004,
    "rest_learning_rate": 0.032,
    "weight_decay": 1.0,
    "momentum": 0.9,
}


def put_all(book, found):
    for part, stored in found.items():
        for case, row in stored.items():
            book.put(part, case, row)


def test_the_rivals_settings_and_its_rate_multiplied(runs, tmp_path):
    import ledger
    import switching

    book = ledger.Ledger(tmp_path / "rows.json")
    put_all(book, won("adamw_split", ADAMW))
    task = small_task("gpt")
    switching.measure(task, book, forever)
    momentum = inspect.signature(optax_muon.muon).parameters["momentum"].default
    assert runs == [
        (
            *("gpt", "muon"),
            ADAMW | {"learning_rate": rate, "momentum": momentum},
            seed,
        )
        for rate in (0.004, 0.008, 0.016, 0.032, 0.064)
        for seed in ledger.SEEDS
    ]
    runs.clear()
    switching.measure(task, book, forever)
    assert runs == []
    # Another setting of AdamW's won since: nothing found before is shown, and all runs
    # are repeated.
    put_all(book, won("adamw_split", ADAMW | {"weight_decay": 0.1}))
    assert switching.runs(book.document, "gpt", 1) == []
    switching.measure(task, book, forever)
    assert len(runs) == 25
    assert len(switching.runs(book.document, "gpt", 1)) == 5


def test_the_table():
    import convergence_table
    import switching

    results = document()
    assert "Coming from AdamW" not in convergence_table.markdown(results)
    put = results["results"]
    searched = won("adamw_split", ADAMW)
    for part in searched:
        put[part] |= searched[part]
    for seed in range(5):
        put["seeds"][f"gpt/adamw_split/{seed}"]["settings"] = ADAMW
    put["switching"] = {
        f"gpt/2/{seed}": {
            "source": "1",
            "settings": switching.switched(ADAMW, 2),
            "validation_loss": 1.5 + seed / 100,
            "validation": [[100, 2.0], [200, 1.6], [300, 1.5 + seed / 100]],
        }
        for seed in range(5)
    }
    text = convergence_table.markdown(results)
    _, table = text.split("**Coming from AdamW**")
    (line,) = [line for line in table.splitlines() if line.startswith("| 2 times")]
    assert "| `adamw_split` itself | 1.720 (1.700 to 1.740) |  | 300 |\n" in table
    # From 2.0 at 100 to 1.6 at 200: adamw_split's 1.72 of the middle seed at 170.
    # Every seed is 0.2 below.
    assert line == "| 2 times | 1.520 (1.500 to 1.540) | -0.200 ± 0.000 | 170 |"
    assert dict(rows(text))["adamw_split"]
    del put["seeds"]["gpt/adamw_split/0"]  # nothing to hold it against
    assert "Coming from AdamW" not in convergence_table.markdown(results)
