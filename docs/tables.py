"""Tables and a figure of the benchmarks, which pages name and the results files hold.

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
TRANSFER = "pictures/transfer.svg"  # on the site


def _speed() -> str:
    import report

    return report.markdown(json.loads((RESULTS / "cpu.json").read_text()))


def _programs() -> str:
    import pod_table

    results = json.loads((RESULTS / "tpu_aot.json").read_text())["results"]
    return pod_table.programs(pod_table.compared(results["targets"]))


def _convergence() -> str:
    text = (RESULTS / "convergence.md").read_text()
    return text.replace("(transfer.svg)", f"({TRANSFER})")


def _effects() -> str:
    import convergence_table

    return convergence_table.effects(_runs())


def _switched() -> str:
    import part_tables

    return part_tables.switched(_runs())


def _carried_over() -> str:
    import part_tables

    return part_tables.carried_over(_runs())


def _runs() -> dict[str, Any]:
    return json.loads((RESULTS / "convergence.json").read_text())


TABLES: dict[str, Callable[[], str]] = {
    "speed": _speed,
    "programs": _programs,
    "convergence": _convergence,
    "effects": _effects,
    "switched": _switched,
    "carried_over": _carried_over,
}


def on_files(files: Any, config: Any) -> Any:
    """mkdocs calls this once: a figure that lies beside its numbers is of the site."""
    from mkdocs.structure.files import File

    source = RESULTS / "transfer.svg"
    files.append(File.generated(config, TRANSFER, abs_src_path=str(source)))
    return files


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
