"""The recall curve: MQAR accuracy against bytes of state, for every mixer of the package.

The trade-off that Zoology (arXiv:2312.04927) and Based (arXiv:2402.18668) draw: what a model can recall is bought with
state. ``python -m eval.tables.recall --scale laptop``
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from configs.tables import recall as recipe
from eval.tables.cells import Cell, slug
from eval.tables.claims import Claim, Finding, listed, need_two
from eval.tables.command import Table, entry
from eval.tables.figures import legend, line
from eval.tables.rows import NotMeasured, Rows, Stat, grid, mean
from eval.tables.training import Training

ACCURACY, BYTES = "recall/accuracy", "model/state_bytes"
ATTENTION = "Attention"
SHAPES, DASHES = "osD^v", ("-", "--", ":", "-.", "-")
"""Of ten curves each, after which the colours come again."""
SOURCE = "arXiv:2312.04927 and arXiv:2402.18668"


def cells(scale: str) -> list[Cell]:
    """Every mixer by size of state, learning rate and seed."""
    size = recipe.SIZES[scale]
    found = []
    for mixer, configs in recipe.mixers(scale).items():
        for step, config in enumerate(configs):
            for rate in size.budget.learning_rates:
                for seed in range(size.seeds):
                    name = slug(mixer, f"size{step}", rate, f"s{seed}")
                    labels = {"mixer": mixer, "size": step, "learning_rate": rate, "seed": seed}
                    found.append(Cell(name, labels, Training(recipe.experiment(scale, config, rate, seed, name))))
    return found


def curve(rows: Rows, mixer: str) -> list[tuple[float, Stat]]:
    """Bytes of state and recall of a mixer's sizes, smallest first."""
    of = rows.where(mixer=mixer)
    sizes = [(of.find(BYTES, size=size), of.find(ACCURACY, size=size)) for size in of.values("size")]
    return sorted((state.mean, score) for state, score in sizes if state is not None and score is not None)


# Claims


def state_buys_recall(rows: Rows) -> Finding:
    points = [point for mixer in rows.values("mixer") for point in curve(rows, mixer)]
    need_two("mixers", points)
    correlation = rank_correlation([state for state, _ in points], [score.mean for _, score in points])
    return Finding(correlation >= 0.5, f"rank correlation {correlation:.2f} over {len(points)} models; at least 0.5")


def attention_recalls(rows: Rows) -> Finding:
    found = curve(rows, ATTENTION)
    if not found:
        raise NotMeasured(ATTENTION)
    return Finding(
        found[-1][1].mean >= 0.95, f"{ATTENTION} with {found[-1][0]:,.0f} bytes: {found[-1][1]}; at least 0.95"
    )


def larger_is_better(rows: Rows) -> Finding:
    gains = {}
    for mixer in rows.values("mixer"):
        found = curve(rows, mixer)
        if len(found) > 1:
            gains[mixer] = found[-1][1].mean - found[0][1].mean
    need_two("mixers of several sizes", list(gains))
    return Finding(min(gains.values()) >= 0, f"largest state minus smallest: {listed(gains.items())}")


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's correlation; 0 where one side is constant."""
    x, y = ranks(a), ranks(b)
    dx, dy = [value - mean(x) for value in x], [value - mean(y) for value in y]
    scale = math.sqrt(sum(value**2 for value in dx) * sum(value**2 for value in dy))
    return sum(p * q for p, q in zip(dx, dy, strict=True)) / scale if scale else 0.0


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of every value; equal ones share the mean of their ranks."""
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


CLAIMS = (
    Claim("Recall is bought with bytes of state, whatever the mixer", SOURCE, state_buys_recall),
    Claim("Full attention recalls every pair", SOURCE, attention_recalls),
    Claim("Every mixer recalls more with its largest state than with its smallest", "ours", larger_is_better, False),
)


# Showing


def markdown(rows: Rows) -> str:
    """Every mixer and size, by bytes of state."""
    slices = rows.slices(f"{ACCURACY}@")
    lines = []
    for mixer in rows.values("mixer"):
        of = rows.where(mixer=mixer)
        for size in sorted(of.values("size")):
            state = of.find(BYTES, size=size)
            scores = [of.find(metric, size=size) for metric in (ACCURACY, *slices.values())]
            lines.append((state.mean if state else math.inf, [mixer, state and f"{state.mean:,.0f}", *scores]))
    header = ["mixer", "bytes of state", "MQAR accuracy", *(f"{pairs} pairs" for pairs in slices)]
    return grid(header, [cells for _, cells in sorted(lines, key=lambda entry: entry[0])])


def draw(rows: Rows, figure: Any) -> None:
    """Accuracy against bytes of state, a curve per mixer; the best come first in the legend."""
    figure.set_size_inches(9, 5)
    axes = figure.subplots()
    curves = {mixer: curve(rows, mixer) for mixer in rows.values("mixer")}
    best = lambda mixer: max((score.mean for _, score in curves[mixer]), default=0.0)  # noqa: E731
    for number, mixer in enumerate(sorted(curves, key=best, reverse=True)):
        color, shape = number % 10, number // 10 % len(SHAPES)
        line(axes, curves[mixer], mixer, color=f"C{color}", marker=SHAPES[shape], linestyle=DASHES[shape])
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bytes of state per sequence", ylabel="MQAR accuracy", ylim=(-0.02, 1.02), title="Recall and state")
    axes.grid(alpha=0.3)
    legend(axes, loc="upper left", bbox_to_anchor=(1.01, 1.0))


TABLE = Table(
    "recall",
    "Recall against bytes of state, for every mixer",
    f"The recall-memory trade-off of {SOURCE}; they print figures, so there are no numbers to stand beside ours.",
    cells,
    CLAIMS,
    markdown,
    draw,
)
main = entry(TABLE)

if __name__ == "__main__":
    sys.exit(main())
