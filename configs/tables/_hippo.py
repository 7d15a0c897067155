"""The cells of the HiPPO table: bases of memory by their step size, on delays and on reconstruction.

Nothing is trained; a cell takes seconds.

Command: ``python -m eval.tables.hippo --scale laptop``.
"""

from __future__ import annotations

import dataclasses

from eval.hippo import Memory

MEASURES = ("legs", "legt", "fourier")
"""LegS, LegT and FouT, which the paper compares."""
WINDOWED = ("legt", "fourier")
FITTING = 2.0
"""The step at which the window of LegT and FouT, in their form of half speed, is as long as the lag."""
BEYOND = 4.0
"""A step at which it is half as long."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the memories of a scale."""

    state_size: int
    lag: int
    steps: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """Step sizes times the lag."""
    signals: int = 16


SIZES = {
    "tiny": Size(16, 12, (1.0, 2.0, 4.0), signals=2),
    "laptop": Size(256, 250),
    "gpu": Size(256, 250),
    "paper": Size(1024, 1000),  # the delay task of arXiv:2206.12037: lag 1000, N = 1024, half of the band
}


def job(scale: str, measure: str, step: float) -> Memory:
    """What a cell computes."""
    size = SIZES[scale]
    return Memory(measure, size.state_size, size.lag, step, signals=size.signals)
