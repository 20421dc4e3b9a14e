"""Long lists of cases: `make test` runs some of them, `.ci/run` all."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def wide_unless(narrow: Callable[[Any], bool], cases: Iterable[Any]) -> list[Any]:
    """The cases for `parametrize`, tuples for several arguments; others are `wide`.

    Args:
      narrow: whether `make test` runs a case.
      cases: all of them.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if narrow(case) else pytest.mark.wide,
        )
        for case in cases
    ]
