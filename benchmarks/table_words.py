"""Numbers in words, and tables in Markdown."""

import math
import statistics

LOSS = "final loss: mean (lowest to highest)"
MISSING = "not measured"


def grid(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(losses: list[float]) -> str:
    ends = f"{number(min(losses))} to {number(max(losses))}"
    return f"{number(statistics.mean(losses))} ({ends})"


def number(value: float) -> str:
    return "diverged" if math.isinf(value) else f"{value:.3f}"


def steps_in_words(steps: float | None) -> str:
    if steps is None:
        return MISSING
    return "never" if math.isinf(steps) else f"{steps:.0f}"
