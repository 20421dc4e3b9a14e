"""The tables of the comparison of optimizers, from made-up results."""

import math

from tests.convergence.small import won

SETTINGS = {
    "muon": {
        "learning_rate": 0.032,
        "rest_learning_rate": 0.032,
        "weight_decay": 0.1,
        "momentum": 0.85,
    },
    "same": {"others": 2.0},
    "adamw_split": {"learning_rate": 0.004},
}


def document():
    """Made-up results: `good` beats muon by 0.1, `same` by nothing, `bad` diverges."""
    finals = {
        "muon": [1.60, 1.61, 1.62, 1.63, 1.64],
        "good": [1.50, 1.51, 1.53, 1.53, 1.53],
        "same": [1.55, 1.66, 1.57, 1.68, 1.64],
        "poor": [1.70, 1.71, 1.72, 1.73, 1.74],
        "bad": [1.70, 1.71, 1.72, 1.73, None],
        "adamw": [1.80, 1.80, 1.80, 1.80, 1.80],
        "adamw_split": [1.70, 1.71, 1.72, 1.73, 1.74],
    }
    seeds = {
        f"gpt/{name}/{seed}": {
            "source": "1",
            "settings": SETTINGS.get(name, {}),
            "validation_loss": loss,
            "validation": [[100, 2.4], [200, 2.0], [300, loss or 9.0]],
        }
        for name, losses in finals.items()
        for seed, loss in enumerate(losses)
    }
    searches = [won(name, SETTINGS.get(name, {})) for name in finals]
    parts = {
        part: {case: row for found in searches for case, row in found[part].items()}
        for part in ("tune", "confirm")
    }
    conditions = {"about": "a GPT", "unit": "nats", "steps": 300}
    return {
        "results": {
            "tasks": {"gpt": conditions, "later": conditions},
            "contestants": {name: {"about": "is it"} for name in [*finals, "new"]},
            "absent": {"rollfast": {"reason": "not installed"}},
            **parts,
            "seeds": seeds,
            "times": {
                "gpt": {
                    "processors": 2,
                    "seconds": {"adamw": {"median": 0.4}},
                    "by_adamw": {
                        "adamw": {"median": 1, "quartiles": [1, 1], "count": 7},
                        "muon": {"median": 1.25, "quartiles": [1.2, 1.307]},
                        "good": {"median": 0.6, "quartiles": [0.59, 0.7]},
                    },
                }
            },
        },
        "environment": {"cpu": "Z80"},
    }


def rows(text):
    """Cells by the first one's name, of all tables."""
    lines = [line for line in text.splitlines() if line[:3] == "| `"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(first.strip("`"), others) for first, *others in cells]


def test_the_table_says_what_the_rows_say():
    import convergence_table

    text = convergence_table.markdown(document())
    found = rows(text)
    cells = dict(found[:7])
    assert list(cells) == [
        *("good", "same", "muon", "poor", "adamw_split", "adamw", "bad")
    ]
    assert "**a GPT**: 300 steps, nats, 2 trials each" in text
    assert text.count("| optimizer | final loss") == 1  # `later` has no runs
    # Between 2.0 at 200 and 1.62 at 300, 1.72 is passed at 273.7, and 1.8 at 252.6.
    settings = "0.032, 0.032, 0.1, 0.85 °"  # none of its neighbours was tried
    assert cells["muon"] == [
        *("1.620 (1.600 to 1.640)", "", "", "274", "253", settings)
    ]
    # Differences -.10, -.10, -.09, -.10, -.11: deviation .00707 / sqrt(5) * 2.776.
    assert cells["good"][1:3] == ["-0.100 ± 0.009", "helps"]
    assert [cells[name][2] for name in ("same", "poor", "adamw")] == [
        *("no difference", "worse", "worse")
    ]
    assert cells["bad"][:3] == ["diverged (1.700 to diverged)", "", ""]
    assert cells["adamw"][3:5] == ["never", "300"]
    assert cells["same"][-1] == "others 2"  # nobody's whom the field knows
    assert "`rollfast` is missing: not installed." in text
    assert "Not run yet: lengths, momenta, switching, transfer." in text
    assert "- `good`: is it" in text
    assert "Not all runs yet: new." in text
    assert "states of" not in text
    # Wall-clock: 273.7 steps of half a second, 259.2 of 0.24; the quickest first.
    assert found[7:] == [
        ("good", ["0.60", "0.59 to 0.70", *("62", "58")]),
        ("adamw", ["1.00", "1.00 to 1.00", *("never", "120")]),
        ("muon", ["1.25", "1.20 to 1.31", *("137", "126")]),
    ]
    assert "on 2 processors (Z80)" in text
    assert "7 rounds" in text
    assert "step taking 400 ms" in text


def test_across_tasks_are_those_that_ran_on_all():
    import convergence_table

    results = document()
    for name in ("muon", "good", "adamw"):
        for seed in range(5):
            run = results["results"]["seeds"][f"gpt/{name}/{seed}"]
            loss = run["validation_loss"] * (2 if name == "good" else 1)
            later = run | {"validation_loss": loss}
            results["results"]["seeds"][f"later/{name}/{seed}"] = later
        won_later = won(name, SETTINGS.get(name, {}), task="later")
        for part in ("tune", "confirm"):
            results["results"][part] |= won_later[part]
    tasks = results["results"]["tasks"]
    tasks["transfer_64"] = tasks["gpt"]  # without runs on reported seeds
    found = rows(convergence_table.across(results))
    # Twice good's losses less muon's: 1.40, 1.41, 1.44, 1.43, 1.42.
    assert found == [
        ("good", ["-0.100 ± 0.009", "+1.420 ± 0.020"]),
        ("adamw", ["+0.180 ± 0.020", "+0.180 ± 0.020"]),
    ]


def test_crossings_are_between_evaluations():
    import verdicts

    curve = [(25, 3.0), (50, 2.0), (75, 2.5), (100, 1.0)]
    assert verdicts.crossing(curve, 3.5) == 25
    assert verdicts.crossing(curve, 2.5) == 37.5
    assert verdicts.crossing(curve, 1.75) == 87.5
    assert verdicts.crossing(curve, 0.5) == math.inf


def test_runs_of_two_settings_are_not_averaged():
    """Better settings were found since, and not all seeds repeated yet."""
    import convergence_table

    results = document()
    results["results"]["seeds"]["gpt/good/3"]["settings"] = {"learning_rate": 1.0}
    del results["results"]["confirm"]["gpt/same/0/102"]  # who won is open
    text = convergence_table.markdown(results)
    ranked = [name for name, _ in rows(text)[:5]]
    assert ranked == ["muon", "poor", "adamw_split", "adamw", "bad"]
    assert "Not all runs yet: good, same, new" in text


def test_the_excerpt_is_of_the_best_and_the_rivals():
    import convergence_table

    found = rows(convergence_table.excerpt(document()))
    assert [name for name, _ in found] == [
        *("good", "same", "muon", "poor", "adamw_split", "adamw")
    ]
    assert found[0][1] == [
        "1.520 (1.500 to 1.530)",
        "-0.100 ± 0.009",
        "helps",
        "259",
        "243",
    ]
