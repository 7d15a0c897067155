"""The cells of the HiPPO table: bases of memory by their step size, on delays, reconstruction and digits.

Delays and reconstruction train nothing; a cell takes seconds. Digits, read pixel by pixel, train classifiers of S4D
layers that start from a basis, with step sizes from a range.

Command: ``python -m eval.tables.hippo --scale laptop``.
"""

from __future__ import annotations

import dataclasses

from configs.lra._recipe import classifier
from configs.tables._recipe import Budget, small
from eval.classification import ClassificationConfig
from eval.hippo import Memory
from seqmodels.data.digits import Digits
from seqmodels.mixers import S4DConfig
from seqmodels.train.experiment import Experiment

MEASURES = ("legs", "legt", "fourier")
"""LegS, LegT and FouT, which the paper compares."""
WINDOWED = ("legt", "fourier")
FITTING = 2.0
"""The step at which the window of LegT and FouT, in their form of half speed, is as long as the lag."""
BEYOND = 4.0
"""A step at which it is half as long."""

DIGITS = "digits"
DIAGONAL = ("legs", "lin", "inv", "fout")
"""Initial systems of S4D."""
RANGES = {"0.0001 to 0.001": (1e-4, 1e-3), "0.01 to 0.1": (1e-2, 1e-1), "1 to 10": (1.0, 10.0)}
"""Initial step sizes: windows far longer than a picture's 64 pixels, about as long, and of a pixel."""
LAPTOP = Budget(400, 32, (1e-2,), "muon")


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the memories and classifiers of a scale."""

    state_size: int
    lag: int
    steps: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """Step sizes times the lag."""
    signals: int = 16
    dim: int = 32
    """Width of the classifiers, of two layers."""
    budget: Budget = LAPTOP
    seeds: int = 1


SIZES = {
    "tiny": Size(16, 12, (1.0, 2.0, 4.0), signals=2, dim=8, budget=Budget(2, 4, (3e-3,))),
    "laptop": Size(256, 250),
    "gpu": Size(256, 250, dim=128, budget=Budget(2000, 64, (4e-3,), "muon"), seeds=3),
    # The delay task of arXiv:2206.12037: lag 1000, N = 1024, half of the band. Digits are ours, not the paper's.
    "paper": Size(1024, 1000, dim=128, budget=Budget(2000, 64, (4e-3,), "muon"), seeds=3),
}


def job(scale: str, measure: str, step: float) -> Memory:
    """What a cell computes."""
    size = SIZES[scale]
    return Memory(measure, size.state_size, size.lag, step, signals=size.signals)


def classify(scale: str, task: str, basis: str, steps: str, rate: float, seed: int, name: str) -> Experiment:
    """A classifier that starts from a basis and a range of step sizes; its systems learn at a tenth of the rate."""
    size, data, (least, most) = SIZES[scale], {DIGITS: Digits()}[task], RANGES[steps]
    mixer = S4DConfig(init=basis, dt_min=least, dt_max=most)  # pyright: ignore[reportArgumentType]
    model = classifier(data, mixer, dim=size.dim, depth=2, numbers=True)
    made = small(name, model, data, size.budget, rate, seed, ClassificationConfig(batch_size=32))
    return dataclasses.replace(made, optim=dataclasses.replace(made.optim, system_learning_rate=rate / 10))
