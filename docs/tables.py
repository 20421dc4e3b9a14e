"""Tables of the benchmarks, which pages name and the results files hold.

A line `<!-- table: speed -->` of a page becomes the table that results give today, so
that no page holds a number that no file does.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"


def _speed() -> str:
    import report

    return report.markdown(json.loads((RESULTS / "cpu.json").read_text()))


def _programs() -> str:
    import pod_table

    results = json.loads((RESULTS / "tpu_aot.json").read_text())["results"]
    return pod_table.programs(pod_table.compared(results["targets"]))


def _convergence() -> str:
    return (RESULTS / "convergence.md").read_text()


def _effects() -> str:
    import convergence_table

    results = json.loads((RESULTS / "convergence.json").read_text())
    return convergence_table.effects(results)


TABLES: dict[str, Callable[[], str]] = {
    "speed": _speed,
    "programs": _programs,
    "convergence": _convergence,
    "effects": _effects,
}


def on_page_markdown(markdown: str, **context: Any) -> str:
    """mkdocs calls this for each page; a table that is not known is a KeyError."""
    if str(BENCHMARKS) not in sys.path:  # its files import each other by name
        sys.path.append(str(BENCHMARKS))
    return re.sub(
        r"^<!-- table: (\w+) -->$",
        lambda found: TABLES[found[1]](),
        markdown,
        flags=re.M,
    )
