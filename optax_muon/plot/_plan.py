"""Whose the parameters are, leaf by leaf, as a plan has it."""

from collections.abc import Sequence

from optax_muon._plan import Plan
from optax_muon._plan_rows import PlanLeaf
from optax_muon._resolution import ADAM, MUON
from optax_muon.plot._figure import Axes, Figure, figure_of, new_axes

_COLOURS = {MUON: "C0", ADAM: "C1"}


def plan(plan: Plan, *, most: int = 20, axes: Axes | None = None) -> Figure:
    """Whose parameters these are: a bar for each leaf, the largest first.

    Args:
      plan: what `optax_muon.plan` returned.
      most: how many leaves have bars of their own; one bar for each optimizer sums the
        others.
      axes: to draw into; None makes a figure.

    Raises:
      TypeError: no `Plan`.
      ValueError: a plan of no leaves; `most` below 1.
    """
    if not isinstance(plan, Plan):
        raise TypeError(
            f"plan has type {type(plan).__name__}; pass optax_muon.plan(params, ...)."
        )
    if not plan.leaves or most < 1:
        raise ValueError(
            f"plan has {len(plan.leaves)} leaves, of which most={most} would be shown; "
            "there is nothing to draw unless both are at least 1."
        )
    bars = _bars(plan.leaves, most)
    axes = new_axes(height=1.5 + 0.25 * len(bars)) if axes is None else axes
    for optimizer in (MUON, ADAM):
        # By position: two leaves of other trees may share a name.
        mine = [i for i, (_, owner, _) in enumerate(bars) if owner == optimizer]
        total = sum(leaf.share for leaf in plan.leaves if leaf.optimizer == optimizer)
        axes.barh(
            mine,
            [100 * bars[i][2] for i in mine],
            color=_COLOURS[optimizer],
            label=f"{optimizer}, {total:.1%}",
        )
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("% of all parameters")
    axes.legend()
    return figure_of(axes)


def _bars(leaves: Sequence[PlanLeaf], most: int) -> list[tuple[str, str, float]]:
    """(name, optimizer, share) of the largest leaves, then of the others together."""
    ordered = sorted(leaves, key=lambda leaf: -leaf.share)
    bars = [(leaf.path, leaf.optimizer, leaf.share) for leaf in ordered[:most]]
    for optimizer in (MUON, ADAM):
        rest = [leaf.share for leaf in ordered[most:] if leaf.optimizer == optimizer]
        if rest:
            bars.append((f"{len(rest)} others, {optimizer}", optimizer, sum(rest)))
    return bars
