"""Which leaf of a model gets what, and what a step costs: optax_muon.plan.

For muon(...) with its defaults, but for the axes, on one device.
"""

import argparse
import html
import json

from optax_muon import _cli_arguments as arguments
from optax_muon import _cli_model
from optax_muon._cli_progress import Progress
from optax_muon._plan import Plan
from optax_muon._planning import plan

__doc__ = f"{__doc__}\n{_cli_model.RETURNS}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--from`, `--axes`, `--tokens`, `--platform`, `--html`, `--json`."""
    _cli_model.add_arguments(parser, required=True)
    parser.add_argument(
        "--tokens",
        type=float,
        help="of a step: also print Muon's share of what forward and backward compute",
    )
    arguments.add_platform(parser)
    parser.add_argument(
        "--html",
        type=arguments.in_an_existing_folder,
        metavar="FILE",
        help="also write the tables to FILE",
    )
    parser.add_argument("--json", action="store_true", help="print it all as JSON")


def run(options: argparse.Namespace) -> None:
    """Print the plan, as tables or as JSON."""
    model = _cli_model.read(options.source, options.axes)
    if options.platform is None:
        arguments.devices()
    with arguments.library_errors(), Progress("planning"):
        found = plan(
            model.params,
            model.matrix_axes,
            platform=options.platform,
            tokens=options.tokens,
        )
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print(f"{found}\n\nThe optimizer: {model.call}")
    if options.html is not None:
        options.html.write_text(page(found, options.source), encoding="utf-8")


def page(found: Plan, title: str) -> str:
    """A whole page, for a browser."""
    title = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"{found._repr_html_()}\n</body>\n</html>\n"
    )
