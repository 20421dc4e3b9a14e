"""How long a run must be to end below a rival's loss."""

import math

import pytest

from tests.convergence.small import forever, named, small_task, won


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """A search of `a` against rivals that end at a loss, on runs of 300 steps.

    A run of n steps ends at 300 / n, and seeds add their number's thousandth.
    """
    import ledger
    import lengths
    import training

    book, ran = ledger.Ledger(tmp_path / "rows.json"), []
    task = small_task("gpt", trials=1, steps=300)
    book.define("tasks", "gpt", task.conditions())
    a, settings = named("a")[0], {"learning_rate": 0.016}

    def row(loss):
        return {"settings": settings, "validation_loss": loss, "seconds": 1.0}

    def measure(task, one, settings, seed):
        ran.append((task.steps, seed))
        return row(300 / task.steps + seed / 1000)

    def search_is_over(name):
        for part, rows in won(name, settings).items():
            for case, stored in rows.items():
                book.put(part, case, stored)

    search_is_over("a")
    monkeypatch.setattr(training, "measure", measure)
    for seed in ledger.SEEDS:
        book.put("seeds", f"gpt/a/{seed}", row(1 + seed / 1000))

    def search(name, loss):
        search_is_over(name)
        for seed in ledger.SEEDS:
            book.put("seeds", f"gpt/{name}/{seed}", row(loss and loss + seed / 1000))
        ran.clear()
        lengths.measure(task, [a], named(name), book, forever)
        return ran, lengths.shortest(book.document, "gpt", "a", name)

    return search


def test_halving_finds_the_length_of_every_seed(searched):
    ran, found = searched("rival", 1.6)
    # 300 / n = 1.6 at 187.5: between 175 (1.714) and 200 (1.5), linear at 188.3.
    assert [n for n, seed in ran if seed == 0] == [150, 225, 175, 200]
    assert found == pytest.approx([175 + 25 * (12 / 7 - 1.6) / (12 / 7 - 1.5)] * 5)
    # Nothing runs twice, and what is known serves another rival.
    assert searched("rival", 1.6)[0] == []
    ran, found = searched("second", 1.4)
    assert ran == []
    assert found == pytest.approx([200 + 25 * (1.5 - 1.4) / (1.5 - 4 / 3)] * 5)


def test_ends_of_the_search(searched):
    import lengths

    # Below the loss of the full run; above that of the shortest run; diverged.
    assert searched("better", 0.9) == ([], [math.inf] * 5)
    ran, found = searched("poor", 13.0)
    assert ran[-1] == (25, 4)
    assert found == [25] * 5
    assert searched("lost", None)[1] == [25] * 5
    assert lengths.shortest({"results": {}}, "gpt", "a", "poor") == []
