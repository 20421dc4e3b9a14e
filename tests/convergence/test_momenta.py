"""Which momentum serves runs of which length: tuning seeds, and the best rate."""

import pytest

from tests.convergence.small import forever, small_task, stub, won
from tests.convergence.test_switching import ADAMW, put_all
from tests.convergence.test_tables import document

LENGTHS = (150, 300, 600, 1200)
MOMENTA = (0.8, 0.85, 0.9, 0.95)


@pytest.fixture
def measured(monkeypatch):
    """Runs that are none, with their numbers of steps first."""
    import training

    found, pretend = [], stub([])

    def measure(task, contestant, settings, seed):
        found.append((task.steps, contestant.name, settings, seed))
        return pretend(task, contestant, settings, seed)

    monkeypatch.setattr(training, "measure", measure)
    return found


def test_every_length_and_momentum_up_to_the_best_rate(measured, tmp_path):
    import ledger
    import momenta

    book, task = ledger.Ledger(tmp_path / "rows.json"), small_task("gpt")
    momenta.measure(task, book, forever)
    assert {seed for *_, seed in measured} == {100, 101}
    assert not {seed for *_, seed in measured} & set(ledger.SEEDS)
    tried = {(n, x["momentum"], x["learning_rate"]) for n, _, x, _ in measured}
    # 0.064 is the best, and the highest of the first three: one more is tried, which
    # diverges.
    rates = (0.016, 0.032, 0.064, 0.128)
    assert tried == {(n, m, r) for n in LENGTHS for m in MOMENTA for r in rates}
    assert len(measured) == 2 * len(tried)
    steps = [n for n, *_ in measured]
    assert steps == sorted(steps)
    measured.clear()
    momenta.measure(task, book, forever)
    assert measured == []

    line = next(x for x in momenta.lines(book.document, "gpt") if x.name == "0.9")
    # The loss of the stub: decay, and of each seed its thousandth.
    loss, rate = momenta.best(book.document, "gpt", 300, line)
    assert (loss, rate) == (pytest.approx(0.1 + 0.1005, abs=1e-4), 0.064)
    stale = book.row("momenta", "gpt/300/0.9/0.032/100") | {"settings": {}}
    book.put("momenta", "gpt/300/0.9/0.032/100", stale)
    assert momenta.best(book.document, "gpt", 300, line) is None
    momenta.measure(task, book, forever)
    assert len(measured) == 1
    assert momenta.best(book.document, "gpt", 300, line) == (loss, rate)


def test_adamw_beside_them(measured, tmp_path):
    import ledger
    import momenta

    book = ledger.Ledger(tmp_path / "rows.json")
    put_all(book, won("adamw_split", ADAMW))
    momenta.measure(small_task("gpt"), book, forever)
    rates = {x["learning_rate"] for n, name, x, _ in measured if name == "adamw_split"}
    assert rates == {0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128}
    others = [
        x | {"learning_rate": 0.004} for _, name, x, _ in measured if name != "muon"
    ]
    assert others == [ADAMW] * len(others)


def test_a_search_goes_down_as_well(measured, tmp_path):
    import ledger
    import momenta

    book = ledger.Ledger(tmp_path / "rows.json")
    put_all(book, won("adamw_split", ADAMW | {"learning_rate": 0.256}))
    momenta.measure(small_task("gpt"), book, forever)
    line = momenta.lines(book.document, "gpt")[-1]
    found = momenta.search(book.document, "gpt", 150, line)
    assert list(found) == [0.032, 0.064, 0.128, 0.256, 0.512]
    assert momenta.best(book.document, "gpt", 150, line)[1] == 0.064


def test_the_table():
    import convergence_table
    import momenta

    results = document()
    line = next(x for x in momenta.lines(results, "gpt") if x.name == "0.9")
    results["results"]["momenta"] = {
        f"gpt/{steps}/0.9/{rate}/{seed}": {
            "source": "1",
            "settings": line.at(rate),
            "validation_loss": loss,
        }
        for steps, rate, seed, loss in (
            (600, 0.016, 100, 1.5),
            (600, 0.016, 101, 1.6),
            (600, 0.032, 100, 1.4),
            (600, 0.032, 101, 1.5),
            (600, 0.064, 100, 1.2),
            (600, 0.064, 101, None),  # a mean with it is no mean
            (150, 0.016, 100, 1.5),
            (150, 0.016, 101, 1.5),
            (150, 0.032, 100, 1.4),
            (150, 0.032, 101, 1.4),
            (150, 0.064, 100, 1.2),  # the highest tried is the best: not over
            (150, 0.064, 101, 1.2),
        )
    }
    text = convergence_table.markdown(results)
    _, table = text.split("**`muon`'s momentum**")
    found = [line for line in table.split("\n\n")[1].splitlines() if "0." in line]
    assert found == ["| `muon`, 0.9 |  |  | 1.450 at 0.032 |  |"]
