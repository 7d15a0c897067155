"""The cells of the AL-RNN table: how many rectified units a chaotic attractor needs.

Nothing here is an experiment of ``train.py``: a cell is a recipe of `seqmodels.train.dynamics`, of which five seeds are
trained at once. M, tau, windows, batches, learning rates and noise are those of the paper's code.

Command: ``python -m eval.tables.alrnn --scale laptop``.
"""

from __future__ import annotations

import dataclasses

from seqmodels.data.dynamics import Flow, Lorenz63, Rossler
from seqmodels.models.alrnn import ALRNNConfig
from seqmodels.train.dynamics import DynamicsConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a scale."""

    epochs: dict[str, int]
    rectified: dict[str, tuple[int, ...]]
    seeds: int = 5
    rows: int = 50_000
    """Per split."""
    free_run: int = 10_000
    units: int = 20
    batches_per_epoch: int = 50


LORENZ, ROSSLER = "Lorenz-63", "Rössler"
FLOWS: dict[str, type[Flow]] = {LORENZ: Lorenz63, ROSSLER: Rossler}
INTERVAL = {LORENZ: 16, ROSSLER: 8}
WINDOW = {LORENZ: 200, ROSSLER: 300}
LEARNING_RATE = {LORENZ: 1e-3, ROSSLER: 5e-3}
MINIMAL = {LORENZ: 2, ROSSLER: 1}
"""Rectified units that suffice, as the paper finds."""
CONTROLS: tuple[int | None, ...] = (1, None)
"""Other forcing intervals, tried on Lorenz-63 with its minimal P."""

SIZES = {
    "tiny": Size({LORENZ: 1, ROSSLER: 1}, {LORENZ: (1, 2), ROSSLER: (0, 1)}, 2, 400, 300, 6, 2),
    "laptop": Size({LORENZ: 400, ROSSLER: 400}, {LORENZ: (0, 1, 2, 3, 4), ROSSLER: (0, 1, 2, 3)}),
    "gpu": Size({LORENZ: 2000, ROSSLER: 3000}, {LORENZ: (0, 1, 2, 3, 4, 6, 10), ROSSLER: (0, 1, 2, 3, 4)}),
    # UNKNOWN to us: the published sweep's number of runs per P.
    "paper": Size({LORENZ: 2000, ROSSLER: 3000}, {LORENZ: (0, 1, 2, 3, 4, 6, 10), ROSSLER: (0, 1, 2, 3, 4, 6)}, 20),
}


def flow(scale: str, system: str) -> Flow:
    """The data of a system."""
    rows = SIZES[scale].rows
    return FLOWS[system](train_rows=rows, valid_rows=rows, test_rows=rows)


def recipe(scale: str, system: str, rectified: int, interval: int | None) -> DynamicsConfig:
    """The training of one entry, all seeds."""
    size = SIZES[scale]
    return DynamicsConfig(
        ALRNNConfig(size.units, rectified),
        flow(scale, system),
        interval=interval,
        window=WINDOW[system],
        epochs=size.epochs[system],
        batches_per_epoch=size.batches_per_epoch,
        learning_rate=LEARNING_RATE[system],
        evaluate_every=min(25, size.epochs[system]),
        free_run=size.free_run,
        seeds=tuple(range(size.seeds)),
    )
