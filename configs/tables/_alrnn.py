"""The cells of the AL-RNN table: how many rectified units a chaotic attractor needs.

Nothing here is an experiment of ``train.py``: a cell is a recipe of `seqmodels.train.dynamics`, of which five seeds are
trained at once. M, tau, windows, batches and noise are those of the paper's code; so are epochs
and learning rates at the scales gpu and paper.

Command: ``python -m eval.tables.alrnn --scale laptop``.
"""

from __future__ import annotations

import dataclasses

from seqmodels.data.dynamics import Flow, Lorenz63, Rossler
from seqmodels.models.alrnn import ALRNNConfig
from seqmodels.train.dynamics import DynamicsConfig


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Of a system at a scale."""

    rectified: tuple[int, ...]
    """Values of P."""
    epochs: int
    learning_rate: float
    final_learning_rate: float = 1e-5
    evaluate_every: int = 25


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a scale."""

    schedules: dict[str, Schedule]
    seeds: int = 5
    rows: int = 50_000
    """Per split."""
    free_run: int = 10_000
    units: int = 20
    batches_per_epoch: int = 50


LORENZ, ROSSLER = "Lorenz-63", "Rössler"
FLOWS = {LORENZ: Lorenz63, ROSSLER: Rossler}
INTERVAL = {LORENZ: 16, ROSSLER: 8}
WINDOW = {LORENZ: 200, ROSSLER: 300}
MINIMAL = {LORENZ: 2, ROSSLER: 1}
"""Rectified units that suffice, as the paper finds."""
CONTROLS: tuple[int | None, ...] = (1, None)
"""Other forcing intervals, tried on Lorenz-63 with its minimal P."""

SIZES = {
    "tiny": Size(
        {LORENZ: Schedule((1, 2), 1, 1e-3, evaluate_every=1), ROSSLER: Schedule((0, 1), 1, 5e-3, evaluate_every=1)},
        seeds=2, rows=400, free_run=300, units=6, batches_per_epoch=2,
    ),
    # A fifth of the updates of the paper's recipe: from its rates Lorenz-63 has not left the plateau by then.
    "laptop": Size(
        {
            LORENZ: Schedule((0, 1, 2, 3), 400, 2e-3, 2e-4, evaluate_every=10),
            ROSSLER: Schedule((0, 1, 2), 400, 5e-3),
        }
    ),
    "gpu": Size(
        {
            LORENZ: Schedule((0, 1, 2, 3, 4, 6, 10), 2000, 1e-3),
            ROSSLER: Schedule((0, 1, 2, 3, 4), 3000, 5e-3),
        }
    ),
    # UNKNOWN to us: the published sweep's number of runs per P.
    "paper": Size(
        {
            LORENZ: Schedule((0, 1, 2, 3, 4, 6, 10), 2000, 1e-3),
            ROSSLER: Schedule((0, 1, 2, 3, 4, 6), 3000, 5e-3),
        },
        seeds=20,
    ),
}  # fmt: skip


def flow(scale: str, system: str) -> Flow:
    """The data of a system."""
    rows = SIZES[scale].rows
    return FLOWS[system](train_rows=rows, valid_rows=rows, test_rows=rows)


def recipe(scale: str, system: str, rectified: int, interval: int | None) -> DynamicsConfig:
    """The training of one entry, all seeds."""
    size = SIZES[scale]
    schedule = size.schedules[system]
    return DynamicsConfig(
        ALRNNConfig(size.units, rectified),
        flow(scale, system),
        interval=interval,
        window=WINDOW[system],
        epochs=schedule.epochs,
        batches_per_epoch=size.batches_per_epoch,
        learning_rate=schedule.learning_rate,
        final_learning_rate=schedule.final_learning_rate,
        evaluate_every=schedule.evaluate_every,
        free_run=size.free_run,
        seeds=tuple(range(size.seeds)),
    )
