"""Figures and axes of matplotlib, which is the extra `plot`; without pyplot's state."""

try:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "matplotlib":
        raise
    raise ImportError(
        "optax_muon.plot draws with matplotlib, which is not installed: pip install "
        "'optax_muon[plot]'."
    ) from error


def new_axes(height: float = 4.8) -> Axes:
    """The only axes of a new figure, so many inches high."""
    return Figure(figsize=(6.4, height), layout="constrained").subplots()


def new_panels(count: int) -> list[Axes]:
    """Axes below each other, with one horizontal scale."""
    figure = Figure(figsize=(6.4, 2.4 * count), layout="constrained")
    return list(figure.subplots(count, squeeze=False, sharex=True)[:, 0])


def figure_of(axes: Axes) -> Figure:
    """The whole figure that axes belong to."""
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes were removed from their figure; pass others, or None.")
    return figure
