"""What a training step's own products cost, by rule: Muon's are compared with that.

Kaplan et al. (arXiv 2001.08361, section 2.1) count 6 FLOPs for a token and a parameter
of a transformer's hidden matrices: a multiply-add forward, and two backward.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax

from optax_muon._matrix_axes import Path
from optax_muon._resolution import Route

FLOPS_OF_A_PARAMETER = 6

Tokens = float | Callable[[Path, Any], float] | None
"""How many a step has, or a rule (path, leaf) -> how many see that leaf."""


def training_flops(tree: Any, decided: Sequence[Route], tokens: Tokens) -> float | None:
    """Of all devices in a forward and a backward pass; None without tokens.

    Args:
      tree: the leaves, whole.
      decided: what becomes of each of them; only Muon's are counted.
      tokens: the user's argument.

    Raises:
      ValueError, TypeError: one that is no positive number; of a rule's, all such.
    """
    if tokens is None:
        return None
    if not callable(tokens):
        _check({"": tokens})
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    taken = [
        (route, tokens(path, leaf) if callable(tokens) else tokens)
        for (path, leaf), route in zip(flat, decided, strict=True)
        if route.view is not None
    ]
    _check({route.path: count for route, count in taken})
    return float(
        sum(FLOPS_OF_A_PARAMETER * math.prod(r.shape) * count for r, count in taken)
    )


def _check(counts: dict[str, Any]) -> None:
    """Raise unless all are positive numbers; keys are paths, "" the argument itself."""
    wrong = [
        f"tokens={count!r}" + (f" for {path}" if path else "")
        for path, count in counts.items()
        if not _is_positive(count)
    ]
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)}: must be a positive int or float, of the tokens (or "
            "other examples) of one step, or a rule (path, leaf) -> such a number."
        )


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and 0 < float(value) < math.inf
