"""The coefficient tables of Newton-Schulz: rows, sources, and a plot of what they do.

A step takes every singular value s to a s + b s^3 + c s^5. A table's band is where its
steps take those in [1e-3, 1].
"""

import argparse

from optax_muon import _cli_arguments as arguments
from optax_muon._cli_arguments import UsageError
from optax_muon._coefficients import COEFFICIENTS
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._polynomials import Row, image
from optax_muon._rounding import slope_at_zero
from optax_muon._tables import Table

SMALLEST = 1e-3
_FORMATS = (".svg", ".png", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--table`, `--steps`, `--plot`."""
    parser.add_argument(
        "--table",
        metavar="NAME",
        help="rows and source of this one; without it, a line for every table",
    )
    parser.add_argument(
        "--steps",
        type=arguments.positive,
        help="instead of the table's own number; needs --table",
    )
    parser.add_argument(
        "--plot",
        type=arguments.in_an_existing_folder,
        metavar="FILE.svg",
        help="draw what becomes of singular values (.svg, .png or .pdf)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the table or tables; draw them if asked to."""
    if options.steps is not None and options.table is None:
        raise UsageError("--steps belongs to one table; name it with --table.")
    names = list(COEFFICIENTS) if options.table is None else [options.table]
    with arguments.library_errors():
        drawn = [NewtonSchulz(name, options.steps) for name in names]
    if options.plot is not None:
        _draw(drawn, options)
    print(listing(drawn) if options.table is None else one(drawn[0]))


def listing(tables: list[NewtonSchulz]) -> str:
    """A line for each."""
    header = ("table", "steps", "band", "slope at 0")
    rows = [
        (
            table.coefficients,
            str(len(table.rows)),
            _band(table.rows),
            f"{slope_at_zero(table.rows):.3g}",
        )
        for table in tables
    ]
    return Table(header, rows).text()


def one(table: NewtonSchulz) -> str:
    """The rows that run, at full precision, with where they come from."""
    rows = [
        (str(step), *map(repr, row)) for step, row in enumerate(table.rows, start=1)
    ]
    return "\n".join(
        [
            f"{table.coefficients}: {COEFFICIENTS[table.coefficients].source}",
            f"band after {len(table.rows)} steps: {_band(table.rows)} for singular "
            f"values in [{SMALLEST:g}, 1]",
            f"slope at 0: {slope_at_zero(table.rows):.3g}",
            "",
            Table(("step", "a", "b", "c"), rows).text(),
        ]
    )


def _band(rows: tuple[Row, ...]) -> str:
    low, high = image(rows, SMALLEST)
    return f"{low:.3f} to {high:.3f}"


def _draw(drawn: list[NewtonSchulz], options: argparse.Namespace) -> None:
    if options.plot.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--plot {options.plot}: the format is told by the name's end, which must "
            f"be {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}."
        )
    with arguments.library_errors():
        import optax_muon.plot
    optax_muon.plot.singular_values(*drawn).savefig(options.plot)
