"""Diagnostics over the steps of a run, a panel for each metric."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_muon.plot._figure import Axes, Figure, figure_of, new_panels

Series = list[tuple[int, np.ndarray]]


def records(
    history: Sequence[tuple[int, Mapping[str, Any]]],
    *,
    axes: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Diagnostics over the steps of a run: a panel a metric, a line a path.

    Args:
      history: (step, {"path/metric": number or array}) of every step that was kept; the
        metric is what follows the last "/". Of an array, as of stacked layers, the line
        is the median and the band reaches from the smallest to the largest. A key may
        be missing at some steps.
      axes: to draw into, one for each metric in the order they first appear (for a
        single metric, axes alone will do); None makes a figure.

    Raises:
      ValueError: no records, values that are no numbers, another number of axes.

    >>> history = [(step, {"mlp/kernel/rms": 0.5**step}) for step in range(3)]
    >>> records(history).axes[0].lines[0].get_ydata().tolist()
    [1.0, 0.5, 0.25]
    """
    metrics = _by_metric(history)
    panels = _panels(axes, list(metrics))
    for panel, (metric, lines) in zip(panels, metrics.items(), strict=True):
        for path, series in lines.items():
            _draw_series(panel, path or metric, series)
        panel.set(xlabel="step", ylabel=metric)
        panel.legend()
    return figure_of(panels[0])


def _by_metric(
    history: Sequence[tuple[int, Mapping[str, Any]]],
) -> dict[str, dict[str, Series]]:
    """The series of every path, by metric."""
    metrics: dict[str, dict[str, Series]] = {}
    for step, record in history:
        for key, value in record.items():
            path, _, metric = key.rpartition("/")
            series = metrics.setdefault(metric, {}).setdefault(path, [])
            series.append((step, _numbers(step, key, value)))
    if not metrics:
        raise ValueError(
            f"history has {len(history)} steps and no values; pass (step, record) "
            "pairs, with records of at least one number."
        )
    return metrics


def _numbers(step: int, key: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"history has {value!r:.80} for {key!r} at step {step}, which is no number "
            "and no array of numbers."
        ) from error
    if array.size == 0:
        raise ValueError(f"history has an empty array for {key!r} at step {step}.")
    return array


def _draw_series(axes: Axes, label: str, series: Series) -> None:
    steps = [step for step, _ in series]
    (line,) = axes.plot(steps, [np.median(a) for _, a in series], label=label)
    if any(array.size > 1 for _, array in series):
        low, high = ([edge(a) for _, a in series] for edge in (np.min, np.max))
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)


def _panels(axes: Axes | Sequence[Axes] | None, metrics: list[str]) -> list[Axes]:
    if axes is None:
        return new_panels(len(metrics))
    panels = [axes] if isinstance(axes, Axes) else list(axes)
    if len(panels) != len(metrics):
        raise ValueError(
            f"axes are {len(panels)}, but metrics are {len(metrics)}: "
            f"{', '.join(metrics)}; pass axes for each, or None."
        )
    return panels
