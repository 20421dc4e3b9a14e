"""A table of cells, as text for a terminal and as HTML for a notebook."""

import html
from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Cells of text; those of the last column are numbers.

    Attributes:
      header: of each column.
      rows: each as long as the header.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def text(self) -> str:
        """With columns of spaces, and a line under the header."""
        rows = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(row, widths) for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)

    def html(self) -> str:
        """One `<table>`, cells escaped."""
        # No colours: a notebook has its own, light or dark.
        head = _html_line(self.header, "th")
        body = "".join(_html_line(row, "td") for row in self.rows)
        return f"<table>\n<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>\n"


def amount(count: float, unit: str) -> str:
    """Three digits of a count, with a prefix of the unit.

    >>> amount(24_100_000, "FLOP"), amount(999_600, "B"), amount(0, "B")
    ('24.1 MFLOP', '1 MB', '0 B')
    """
    prefixes = ["", "k", "M", "G", "T", "P"]
    while count >= 999.5 and len(prefixes) > 1:
        count /= 1000
        prefixes.pop(0)
    return f"{count:.3g} {prefixes[0]}{unit}"


def _html_line(row: Sequence[str], tag: str) -> str:
    sides = ["left"] * (len(row) - 1) + ["right"]
    cells = (
        f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>'
        for side, cell in zip(sides, row, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    *cells, last = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    return "  ".join([*cells, last.strip().rjust(widths[-1])])
