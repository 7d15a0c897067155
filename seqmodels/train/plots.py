"""The loss curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from seqmodels.train.metrics import read_metrics


def plot_loss(run_dir: Path) -> Path:
    """Draw training and held-out loss from ``metrics.jsonl`` to ``loss.png``; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_metrics(run_dir)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, marker in (("loss", "training", ""), ("valid/loss", "held out", "o")):
        points = [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]
        if points:
            axes.plot(*zip(*points), label=label, marker=marker, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(Path(run_dir).resolve().name)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    path = Path(run_dir) / "loss.png"
    figure.savefig(path, dpi=120)
    return path
