"""The command line: `info`, `plan`, `bench`, `coefficients`, each in its own file."""

import argparse
import sys
from collections.abc import Sequence
from typing import Never

from optax_muon import _cli_bench, _cli_coefficients, _cli_info, _cli_plan
from optax_muon._cli_arguments import UsageError

PROGRAM = "python -m optax_muon"
_COMMANDS = {
    "info": _cli_info,
    "plan": _cli_plan,
    "bench": _cli_bench,
    "coefficients": _cli_coefficients,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: the arguments after the program's name; None takes those of the process.

    Returns:
      The exit status: 0, or 2 for what the user can put right, which is then told on
      stderr without a traceback. Errors in the user's own code pass through, with it.
    """
    try:
        options = _parser().parse_args(argv)
        options.argv = list(sys.argv[1:] if argv is None else argv)
        options.run(options)
    except UsageError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Errors in one line, as those of the commands are, not below the whole usage."""

    def error(self, message: str) -> Never:
        raise UsageError(f"{message}; `{self.prog} --help` lists the arguments.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, module in _COMMANDS.items():
        about = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            name,
            help=about,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
