"""The tables of benchmarks/convergence.py, as Markdown, from its results file alone."""

import conditions
import field
import part_tables
import tuning
from contestants import EARLIER
from ledger import CONFIRMING_SEEDS, SEEDS
from rivals import ADAMW, CONTRIB, SPLIT
from selection import FINALISTS, trials
from table_words import LOSS, grid, spread, steps_in_words
from tasks import CHUNK
from verdicts import (
    difference,
    finals,
    leaders,
    names,
    ranking,
    runs,
    steps_to_final,
)

DEFAULT = field.DEFAULT.name
OPEN = "°"
PARTS = ("lengths", "momenta", "switching", "times", "transfer")  # beside the table
SHOWN = 3  # of the best, in the excerpt
HEAD = (
    "optimizer",
    LOSS,
    f"less `{DEFAULT}`'s",
    f"than `{DEFAULT}`",
    f"steps to `{SPLIT.name}`'s loss",
    f"to `{ADAMW.name}`'s",
    "settings",
)
RULE = f"""How to read this:

- Losses are those of {len(SEEDS)} seeds, none of them a tuning seed, with the best \
settings of equally many trials: all run on one tuning seed, the best {FINALISTS} of \
each on {len(CONFIRMING_SEEDS)} more, and the mean decides. Settings are the rates of \
the matrices and of all else, weight decay and momentum (AdamW's b1); others have \
their names. {OPEN}: the search is open: a neighbour of the best on its ladders was \
not tried.
- On the first task the searches of {EARLIER} began where earlier ones of the same \
model had ended. All others began at those settings of `{DEFAULT}`, at a rate that \
makes their steps about as large; `scion`, `muon_hyperball` and `speedrun`, which have \
settings of other kinds, partly at guesses.
- Differences are taken seed by seed: their mean, and half its 95 % interval \
(Student's t). A contestant *helps* or is *worse* where the interval leaves zero out; \
else there is *no difference* that five seeds can show. So one verdict in twenty is \
chance; and what choosing settings by few seeds adds is not in the intervals.
- Steps to a loss are read off the curve of a full run, whose rate has not come down \
by then: the median over seeds, linear between evaluations every {CHUNK} steps.
- Adam trains all but the matrices, with the same decay rates and without weight \
decay, for every contestant but `{ADAMW.name}`, `{SPLIT.name}` and `scion`; \
`{CONTRIB.name}` gives it NAdam.
- `like_optax` is not among them: it moves a model as `{CONTRIB.name}` does, which a \
test holds it to."""


def markdown(document: dict) -> str:
    """All tables that have rows, each task's best first, and how to read them."""
    tables = [table(document, task) for task in reported(document)]
    parts = part_tables.tables(document)
    found = [*tables, RULE, *parts, who(document), *cautions(document)]
    return "\n\n".join(found) + "\n"


def reported(document: dict) -> list[str]:
    """Tasks with reported runs of contestants; those of `transfer` have none."""
    return [
        task
        for task in document["results"].get("tasks", {})
        if any(finals(document, task, name) for name in names(document))
    ]


def table(document: dict, task: str) -> str:
    """One task: a line a contestant."""
    config = document["results"]["tasks"][task]
    ranked = ranking(document, task, names(document))
    counts = {len(trials(document, task, name)) for name in ranked}
    spent = "/".join(map(str, sorted(counts)))
    title = f"**{config['about']}**: {config['steps']} steps, {config['unit']}, {spent}"
    return f"{title} trials each\n\n" + grid(
        HEAD, [line(document, task, name) for name in ranked]
    )


def excerpt(document: dict) -> str:
    """The first task's best, default and rivals, without their settings."""
    rivals = [one.name for one in field.RIVALS]
    others = [name for name in names(document) if name not in (DEFAULT, *rivals)]
    best = leaders(document, conditions.FIRST, others, SHOWN)
    shown = ranking(document, conditions.FIRST, [DEFAULT, *best, *rivals])
    rows = [line(document, conditions.FIRST, name)[:-1] for name in shown]
    return grid(HEAD[:-1], rows)


def across(document: dict) -> str:
    """Losses less the default's, of those that ran on every task, a column a task."""
    tasks = reported(document)
    shown = [
        name
        for name in ranking(document, conditions.FIRST, names(document))
        if name != DEFAULT and all(finals(document, task, name) for task in tasks)
    ]
    about = (document["results"]["tasks"][task]["about"] for task in tasks)
    cells = {
        name: [difference(document, task, name, DEFAULT) for task in tasks]
        for name in shown
    }
    rows = [
        [
            f"`{name}`",
            *(f"{one.mean:+.3f} ± {one.margin:.3f}" if one else "" for one in row),
        ]
        for name, row in cells.items()
    ]
    return grid(("optimizer", *about), rows)


def effect(document: dict, name: str) -> str:
    """What a contestant changes on the first task, in a cell of the README."""
    found = difference(document, conditions.FIRST, name, DEFAULT)
    return f"{found.verdict}: {found.mean:+.3f} ± {found.margin:.3f}" if found else ""


def effects(document: dict) -> str:
    """What each contestant is, and changes on the first task."""
    listed = document["results"].get("contestants", {})
    ranked = ranking(document, conditions.FIRST, listed)
    rows = [
        (f"`{name}`", listed[name]["about"], effect(document, name)) for name in ranked
    ]
    return grid(("name", "what it is", f"tuned, less tuned `{DEFAULT}`'s"), rows)


def line(document: dict, task: str, name: str) -> list[str]:
    """A contestant's row."""
    default = difference(document, task, name, DEFAULT)
    return [
        f"`{name}`",
        spread(finals(document, task, name)),
        f"{default.mean:+.3f} ± {default.margin:.3f}" if default else "",
        default.verdict if default else "",
        *(
            steps_in_words(steps_to_final(document, task, name, rival.name))
            for rival in (SPLIT, ADAMW)
        ),
        settings_in_words(document, task, name),
    ]


def settings_in_words(document: dict, task: str, name: str) -> str:
    """The winning ones, and whether their search is open."""
    settings = runs(document, task, name)[0]["settings"]
    known = field.competitors().get(name)
    tried = trials(document, task, name)
    is_open = known is not None and not tuning.settled(known, settings, tried)
    plain = ("learning_rate", "rest_learning_rate", "weight_decay", "momentum")
    words = [
        f"{value:g}" if key in plain else f"{key} {value:g}"
        for key, value in settings.items()
    ]
    return ", ".join(words) + (f" {OPEN}" if is_open else "")


def who(document: dict) -> str:
    """What the contestants are."""
    listed = document["results"].get("contestants", {}).items()
    lines = [f"- `{name}`: {row['about']}" for name, row in listed]
    return "\n".join(["The contestants:", "", *lines])


def cautions(document: dict) -> list[str]:
    """What a reader must know besides."""
    results = document["results"]
    runs_of = ("tune", "confirm", "seeds", *(part for part in PARTS if part != "times"))
    rows = [row for part in runs_of for row in results.get(part, {}).values()]
    states = {row["source"] for row in rows}
    notes = []
    if len(states) > 1:
        notes.append(
            f"The runs are of {len(states)} states of optax_muon's files (`source` in "
            "the rows)."
        )
    waiting = [
        name for name in names(document) if not finals(document, conditions.FIRST, name)
    ]
    notes += [
        f"`{peer}` is missing: {row['reason']}."
        for peer, row in results.get("absent", {}).items()
        if peer not in names(document)
    ]
    if waiting:
        notes.append(f"Not all runs yet: {', '.join(waiting)}.")
    missing = [part for part in PARTS if not results.get(part)]
    if missing:
        notes.append(f"Not run yet: {', '.join(missing)}.")
    return notes
