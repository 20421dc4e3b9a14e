"""Which momentum serves runs of which length: tuning seeds, and the best rate."""

import pytest

from tests.convergence.small import forever, small_task, stub
from tests.convergence.test_tables import document

RATES = (0.016, 0.032, 0.064)


def test_every_length_momentum_and_rate_on_tuning_seeds(tmp_path, monkeypatch):
    import ledger
    import momenta
    import training

    book, runs, steps = ledger.Ledger(tmp_path / "rows.json"), [], []
    pretend = stub(runs)

    def measure(task, *others):
        steps.append(task.steps)
        return pretend(task, *others)

    monkeypatch.setattr(training, "measure", measure)
    momenta.measure(small_task("gpt"), book, forever)
    assert {seed for *_, seed in runs} == {100, 101}
    assert not {seed for *_, seed in runs} & set(ledger.SEEDS)
    assert len(runs) == 4 * 4 * 3 * 2
    tried = {(x["learning_rate"], x["momentum"]) for _, _, x, _ in runs}
    assert tried == {(r, m) for r in RATES for m in (0.8, 0.85, 0.9, 0.95)}
    assert steps == [n for n in (150, 300, 600, 1200) for _ in range(12)] * 2
    runs.clear()
    momenta.measure(small_task("gpt"), book, forever)
    assert runs == []
    stale = book.row("momenta", "gpt/150/0.8/0.032/100") | {"settings": {}}
    book.put("momenta", "gpt/150/0.8/0.032/100", stale)
    assert momenta.best(book.document, "gpt", 150, 0.8) is None
    momenta.measure(small_task("gpt"), book, forever)
    assert len(runs) == 1
    assert momenta.best(book.document, "gpt", 150, 0.8) is not None
    # The rate of 0.064 is the best one, 0 and not 1; seeds add their thousandth.
    name = sum(map(ord, "muon")) / 1e8
    assert momenta.best(book.document, "gpt", 300, 0.9) == pytest.approx(
        0.1 + 0.1005 + name
    )


def test_the_table():
    import convergence_table
    import momenta

    results = document()
    results["results"]["momenta"] = {
        f"gpt/600/0.9/{rate}/{seed}": {
            "source": "1",
            "settings": momenta.settings_of(0.9, rate),
            "validation_loss": loss,
        }
        for rate, seed, loss in (
            (0.016, 100, 1.5),
            (0.016, 101, 1.6),
            (0.032, 100, 1.4),
            (0.032, 101, 1.5),
            (0.064, 100, 1.2),
            (0.064, 101, None),  # a mean with it is no mean
        )
    }
    text = convergence_table.markdown(results)
    _, table = text.split("**`muon`'s momentum**")
    lines = [line for line in table.split("\n\n")[1].splitlines() if "0." in line]
    assert lines == ["| 0.9 |  |  | 1.450 |  |"]
