"""Tables of the parts beside tuning and reported runs, one for each part."""

import functools
import itertools
import math
import statistics

import conditions
import field
import lengths
import momenta
import switching
import transfer
from contestants import START
from ledger import SEEDS
from rivals import ADAMW, SPLIT
from table_words import LOSS, grid, number, spread, steps_in_words
from verdicts import (
    Difference,
    final,
    finals,
    median_crossing,
    names,
    paired,
    steps_to_final,
)

DEFAULT = field.DEFAULT.name
NEIGHBOURS = (
    "rates are a factor of 2 apart, and so few seeds often do not tell the best one "
    "from the next"
)


def tables(document: dict) -> list[str]:
    """All that have rows."""
    found = (shortest_runs, lasting, switched, drawn, step_times)
    return [text for text in (table(document) for table in found) if text is not None]


def shortest_runs(document: dict) -> str | None:
    """How long a run with a schedule of its own must be, on the first task."""
    searched = {case.split("/")[1] for case in document["results"].get("lengths", ())}
    if not searched:
        return None
    full = document["results"]["tasks"][conditions.FIRST]["steps"]
    rivals = [rival.name for rival in lengths.RIVALS]
    rows = []
    for name in names(document):
        if name not in searched:
            continue
        found = [
            lengths.shortest(document, conditions.FIRST, name, rival)
            for rival in rivals
        ]
        if any(found):  # else the search goes on
            rows.append([f"`{name}`", *(shares(steps, full) for steps in found)])
    head = [f"steps to `{rival}`'s loss after {full}" for rival in rivals]
    return (
        "**How long must a run be?** Each length is a run of its own with the whole "
        f"schedule, found by halving: the median over {len(SEEDS)} seeds (lowest to "
        f"highest), and as a share of {full} steps\n\n"
    ) + grid(("optimizer", *head), rows)


def shares(steps: list[float], full: int) -> str:
    if not steps:
        return ""
    middle = statistics.median(steps)
    ends = f"{steps_in_words(min(steps))} to {steps_in_words(max(steps))}"
    share = "" if math.isinf(middle) else f", {100 * middle / full:.0f} %"
    return f"{steps_in_words(middle)} ({ends}){share}"


def lasting(document: dict) -> str | None:
    """What each momentum of the default reaches in runs of several lengths, and at
    which rate; and what AdamW does."""
    task, rows = conditions.FIRST, []
    for line in momenta.lines(document, task):
        found = [momenta.best(document, task, n, line) for n in momenta.LENGTHS]
        if any(found):
            cells = (f"{number(of[0])} at {of[1]:g}" if of else "" for of in found)
            rows.append([named(line), *cells])
    if not rows:
        return None
    return (
        f"**`{DEFAULT}`'s momentum** in runs of several lengths, each with the whole "
        f"schedule: final loss, the mean of tuning seeds "
        f"{' and '.join(map(str, momenta.MOMENTA_SEEDS))}, at the best rate for "
        f"matrices; {NEIGHBOURS}\n\n"
    ) + grid(("optimizer", *(f"{n} steps" for n in momenta.LENGTHS)), rows)


def named(line: momenta.Line) -> str:
    of_default = line.contestant is field.DEFAULT
    return f"`{DEFAULT}`, {line.name}" if of_default else f"`{line.name}`"


def switched(document: dict) -> str | None:
    """What the default reaches at multiples of AdamW's rate, on the first task."""
    task, rows = conditions.FIRST, []
    rival = finals(document, task, SPLIT.name)
    for factor in switching.FACTORS:
        found = switching.runs(document, task, factor)
        if rival and found:
            losses = [final(row) for row in found]
            less = difference_in_words(paired(losses, rival))
            steps = steps_in_words(median_crossing(found, rival))
            rows.append([f"{factor} times", spread(losses), less, steps])
    if not rows:
        return None
    config = document["results"]["tasks"][task]
    rows.insert(0, [f"`{SPLIT.name}` itself", spread(rival), "", f"{config['steps']}"])
    return (
        f"**Coming from AdamW**: `{DEFAULT}` with the rates and the decay that "
        f"`{SPLIT.name}` won with, the matrices' rate times a factor, and momentum "
        f"{switching.MOMENTUM:g}; {config['about']}, {config['steps']} steps, "
        f"{config['unit']}, {len(SEEDS)} seeds; differences are taken seed by seed, "
        "with half their 95 % interval\n\n"
    ) + grid(
        (
            "matrices' rate",
            LOSS,
            f"less `{SPLIT.name}`'s",
            f"steps to `{SPLIT.name}`'s loss",
        ),
        rows,
    )


def difference_in_words(found: Difference | None) -> str:
    return f"{found.mean:+.3f} ± {found.margin:.3f}" if found else ""


def carried_over(document: dict) -> str | None:
    """The best rate of each width, and what the narrowest one's costs there."""
    narrow, rows = transfer.WIDTHS[0], []
    if not transfer.is_whole(document, narrow):
        return None
    best = {scale: transfer.best(document, narrow, scale) for scale in transfer.TRIED}
    for width in filter(
        functools.partial(transfer.is_whole, document), transfer.WIDTHS
    ):
        cells = []
        for scale, narrow_best in best.items():
            losses = dict(transfer.curve(document, width, scale))
            rate = transfer.best(document, width, scale)
            if rate is None:
                cells += ["diverged"] * 3
                continue
            more = losses.get(narrow_best, math.inf) - losses[rate]
            costs = "diverged" if math.isinf(more) else f"{more:+.3f}"
            cells += [f"{rate:g}", number(losses[rate]), costs]
        rows.append([f"{width}", *cells])
    if not rows:
        return None
    heads = (
        (f'`"{scale}"`: best rate', "its loss", f"with the best of width {narrow}")
        for scale in best
    )
    return (
        "**Do rates carry over to wider models?** Learning rates of hidden matrices "
        f"that are best after {transfer.STEPS} steps of the GPT, by the scale of "
        f"`{DEFAULT}`; mean loss of {len(transfer.TRANSFER_SEEDS)} seeds, and how much "
        f"more it is with the rate that is best at width {narrow}. Only the scale of "
        f"hidden matrices changes: momentum is {START['momentum']:g}, and embedding, "
        f"head and norms have the rate {START['rest_learning_rate']:g} at every "
        f"width; {NEIGHBOURS}\n\n"
    ) + grid(("width", *itertools.chain.from_iterable(heads)), rows)


def drawn(document: dict) -> str | None:
    """The same with the figure, which lies beside the tables."""
    table = carried_over(document)
    return table and f"{table}\n\n![{transfer.CAPTION}]({transfer.FIGURE})"


def step_times(document: dict) -> str | None:
    """Wall-clock: a step's time, and that of all steps to the rivals' losses."""
    times = document["results"].get("times", {}).get(conditions.FIRST)
    if times is None:
        return None
    rows = []
    for name, ratio in sorted(
        times["by_adamw"].items(), key=lambda item: item[1]["median"]
    ):
        # Not the median of the contestant's own seconds: the ratio within a round
        # sees less of the machine's noise, and the columns agree.
        step = ratio["median"] * times["seconds"][ADAMW.name]["median"]
        low, high = ratio["quartiles"]
        spent = [
            time_in_words(document, name, rival.name, step) for rival in (SPLIT, ADAMW)
        ]
        middle, spread = f"{ratio['median']:.2f}", f"{low:.2f} to {high:.2f}"
        rows.append([f"`{name}`", middle, spread, *spent])
    head = (
        "optimizer",
        f"time of a step, by `{ADAMW.name}`'s",
        "quartiles",
        *(f"seconds to `{rival.name}`'s loss" for rival in (SPLIT, ADAMW)),
    )
    about = document["results"]["tasks"][conditions.FIRST]["about"]
    return (
        f"**Wall-clock**, {about}, on {times['processors']} processors "
        f"({document['environment']['cpu']}): the whole training step, all contestants "
        f"in turn in one process, {times['by_adamw'][ADAMW.name]['count']} rounds, "
        f"ratios taken within a round (so `{ADAMW.name}`'s own are 1). Where the "
        "quartiles of two others overlap, noise of the machine may be all that tells "
        "them apart. Seconds are the median of the "
        f"steps times the ratio, `{ADAMW.name}`'s step taking "
        f"{1000 * times['seconds'][ADAMW.name]['median']:.0f} ms; `muon_clip` has a "
        "second forward pass for the logits\n\n"
    ) + grid(head, rows)


def time_in_words(document: dict, name: str, rival: str, step: float) -> str:
    """Seconds, where a step takes `step` of them; or that the loss is not reached."""
    steps = steps_to_final(document, conditions.FIRST, name, rival)
    if steps is None or math.isinf(steps):
        return steps_in_words(steps)
    return f"{steps * step:.0f}"
