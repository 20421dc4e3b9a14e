"""What a comparison of optimizers found: a verdict in words, and a figure."""

from pathlib import Path

from matplotlib.figure import Figure

from loop import VALIDATION_WINDOWS, History


def verdict(histories: dict[str, History]) -> str:
    """Final losses, best first, and when Muon passed where AdamW ended."""
    ranking = sorted(histories, key=lambda name: histories[name].final)
    lines = [
        f"Final validation loss, nats per byte ({VALIDATION_WINDOWS} windows "
        "of files not trained on):",
        *(
            f"  {name:<12} {histories[name].final:.4f}"
            f"   {histories[name].tokens_per_second:>9,.0f} tokens/s"
            for name in ranking
        ),
    ]
    for rival in ("adamw", "adamw_split"):
        if {"muon", rival} <= histories.keys():
            lines.append(_passing(histories["muon"], histories[rival], rival))
    return "\n".join(lines)


def passing_step(runner: History, rival: History) -> int | None:
    """The first evaluation at which the runner's loss is below the rival's final."""
    for step, loss in runner.validation:
        if loss < rival.final:
            return step
    return None


def _passing(muon: History, rival: History, name: str) -> str:
    step = passing_step(muon, rival)
    last = rival.validation[-1][0]
    if step is None:
        return f"muon did not pass {name}'s final loss in {last} steps."
    return f"muon passed {name}'s final loss by step {step} of {last}."


def draw(histories: dict[str, History], title: str, path: Path) -> None:
    """The curves of all runs: validation with markers, training faint behind it."""
    figure = Figure(figsize=(8, 5), layout="constrained")  # needs no display
    axes = figure.subplots()
    for color, (name, history) in enumerate(histories.items()):
        axes.plot(
            range(1, len(history.train) + 1),
            history.train,
            color=f"C{color}",
            alpha=0.2,
            linewidth=0.8,
        )
        steps, losses = zip(*history.validation, strict=True)
        axes.plot(
            steps,
            losses,
            color=f"C{color}",
            marker="o",
            markersize=4,
            label=f"{name}: {history.final:.3f}",
        )
    axes.set(xlabel="step", ylabel="loss (nats per byte)", title=title)
    axes.legend(title="validation loss at the end\n(faint: training loss)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
