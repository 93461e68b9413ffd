"""Plots of a stage: loss, learning rate, and the drawn mixture beside the intended one."""

from collections.abc import Mapping
from pathlib import Path

from .checkpoint import latest
from .log import rows


def draw_curves(folder: Path, cells: Mapping[tuple[str, str], float]) -> Path | None:
    """Plot log.jsonl and the newest checkpoint of a stage into curves.png.

    Args:
        folder: of the stage.
        cells: (data set, task) -> intended share of the samples.

    Returns:
        The file, or None if matplotlib is not installed or no step is logged.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps = list(rows(folder / "log.jsonl"))
    if not steps:
        return None
    newest = latest(folder)
    counts = {(name, task): n for name, task, n in newest.state["sampler"]["counts"]} if newest else {}
    total = sum(counts.values()) or 1
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    x = [row["step"] for row in steps]
    losses = [row["loss"] for row in steps]
    left.plot(x, losses, linewidth=0.6, alpha=0.4)
    left.plot(x, _smooth(losses), linewidth=1.4)
    left.set(title="loss", xlabel="step")
    middle.plot(x, [row["lr"] for row in steps])
    middle.set(title="learning rate", xlabel="step")
    names = list(cells)
    places = range(len(names))
    intended = [100 * cells[name] for name in names]
    drawn = [100 * counts.get(name, 0) / total for name in names]
    right.barh([place + 0.2 for place in places], intended, 0.4, label="intended")
    right.barh([place - 0.2 for place in places], drawn, 0.4, label="drawn")
    right.set_yticks(list(places), [f"{name} / {task}" for name, task in names], fontsize=7)
    right.set(title="samples, percent")
    right.legend(fontsize=7)
    figure.suptitle(f"stage {folder.name}")
    figure.savefig(folder / "curves.png", dpi=110)
    return folder / "curves.png"


def _smooth(values: list[float], weight: float = 0.95) -> list[float]:
    """Exponential moving average."""
    averages, mean = [], values[0]
    for value in values:
        mean = weight * mean + (1 - weight) * value
        averages.append(mean)
    return averages
