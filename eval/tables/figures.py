"""What the figures of the tables share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.tables.rows import Stat


def line(axes: Any, points: Sequence[tuple[float, Stat | None]], label: str, **style: Any) -> None:
    """A curve through what was measured, with bars of one standard deviation where there are several seeds."""
    there = [(x, stat) for x, stat in points if stat is not None]
    if not there:
        return
    heights, deviations = [stat.mean for _, stat in there], [stat.deviation for _, stat in there]
    bars = deviations if any(stat.count > 1 for _, stat in there) else None
    style = {"marker": "o", "capsize": 3} | style
    axes.errorbar([x for x, _ in there], heights, yerr=bars, label=label, **style)


def legend(axes: Any, **place: Any) -> None:
    """A small legend, if there is anything to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", **place)
