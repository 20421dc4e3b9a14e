"""`python -m optax_muon`: the library's answers from a shell. See `--help`."""

import os
import sys

from optax_muon._cli import main

if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough, which is no error of anyone's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
