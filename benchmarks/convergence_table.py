"""The tables of benchmarks/convergence.py, as Markdown, from its results file alone."""

import math
import statistics

import conditions
from field import DEFAULT
from ledger import SEEDS, key
from rivals import ADAMW, SPLIT
from verdicts import Difference, difference, finals, steps_to_final

MISSING = "not measured"
HEAD = (
    "optimizer",
    "final loss: mean (lowest to highest)",
    f"less {DEFAULT.name}'s",
    f"less {SPLIT.name}'s",
    f"steps to {ADAMW.name}'s",
    f"time of a step, by {ADAMW.name}'s",
    f"than {DEFAULT.name}",
)
RULE = (
    f"Losses are those of {len(SEEDS)} seeds, none of them the tuning seed, with the "
    "best settings of equally many trials. Differences are taken seed by seed: their "
    "mean, and half its 95 % interval (Student's t). A variant *helps* or is *worse* "
    "where the interval leaves zero out; else there is *no difference* that five seeds "
    "can show. Steps: the median over seeds, linear between evaluations."
)


def markdown(document: dict) -> str:
    """All tables that have rows, each task's best first, and how to read them."""
    tables = [
        table(document, task)
        for task in document["results"].get("tasks", {})
        if any(finals(document, task, name) for name in names(document))
    ]
    return "\n\n".join([*tables, RULE, *cautions(document)])


def names(document: dict) -> list[str]:
    return list(document["results"].get("contestants", {}))


def table(document: dict, task: str) -> str:
    """One task: a line a contestant."""
    config = document["results"]["tasks"][task]
    losses = {name: finals(document, task, name) for name in names(document)}
    ranking = sorted(
        (name for name in losses if losses[name]),
        key=lambda name: statistics.mean(losses[name]),
    )
    trials = [trial_count(document, task, name) for name in ranking]
    spent = "/".join(str(count) for count in sorted(set(trials)))
    title = f"**{config['about']}**: {config['steps']} steps, {config['unit']}, {spent}"
    lines = [HEAD, ["---"] * len(HEAD), *(line(document, task, n) for n in ranking)]
    return "\n".join([f"{title} trials each", "", *map(row, lines)])


def line(document: dict, task: str, name: str) -> list[str]:
    """A contestant's row."""
    losses = finals(document, task, name)
    steps = steps_to_final(document, task, name, ADAMW.name)
    default = difference(document, task, name, DEFAULT.name)
    return [
        f"`{name}`",
        f"{number(statistics.mean(losses))} ({number(min(losses))} to "
        f"{number(max(losses))})",
        signed(default),
        signed(difference(document, task, name, SPLIT.name)),
        MISSING if steps is None else "never" if math.isinf(steps) else f"{steps:.0f}",
        step_time(document, name),
        default.verdict if default else "",
    ]


def step_time(document: dict, name: str) -> str:
    """A step of the first task, by AdamW's."""
    times = document["results"].get("times", {}).get(conditions.FIRST, {})
    ratio = times.get("by_adamw", {}).get(name)
    return MISSING if ratio is None else f"{ratio['median']:.2f}"


def trial_count(document: dict, task: str, name: str) -> int:
    prefix = key(task, name, "")
    return sum(case.startswith(prefix) for case in document["results"].get("tune", ()))


def cautions(document: dict) -> list[str]:
    """What a reader must know besides."""
    results = document["results"]
    rows = [row for part in ("tune", "seeds") for row in results.get(part, {}).values()]
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
    return notes


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    return "diverged" if math.isinf(value) else f"{value:.3f}"


def signed(found: Difference | None) -> str:
    return "" if found is None else f"{found.mean:+.3f} ± {found.margin:.3f}"
