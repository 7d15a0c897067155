"""The cells of the table of linear self-attention on in-context regression.

Nothing here is an experiment of ``train.py``: a cell is a job of `eval.in_context`. The paper proves and prints no
recipe: the grid of examples and noise, the covariance, steps and rates are ours.

Command: ``python -m eval.tables.icl --scale laptop``.
"""

from __future__ import annotations

import dataclasses

from eval.in_context import InContext, Regression


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a scale."""

    examples: tuple[int, ...]
    noise: tuple[float, ...]
    steps: int
    batch_size: int
    held_out: int
    seeds: int = 1
    lengths: tuple[int, ...] = (3, 30)
    """Of other prompts, on which the layer is tried too."""


DIM = 5
WHITE = (1.0,) * DIM
COVARIANCE = (4.0, 2.0, 1.0, 0.5, 0.25)
INPUTS = {
    "white": (WHITE, WHITE),
    "w ~ N(0, inverse covariance)": (COVARIANCE, tuple(1 / value for value in COVARIANCE)),
    "w ~ N(0, I)": (COVARIANCE, WHITE),
}
"""Covariances of inputs and of weights; those that are not white are tried at the middle of the grid."""
MIDDLE = (10, 0.25)

SIZES = {
    "tiny": Size((2, 10), (0.25,), 4, 8, 50, lengths=()),
    "laptop": Size((1, 5, 10, 20, 40), (0.0, 0.25, 1.0), 600, 256, 20_000),
    "gpu": Size((1, 5, 10, 20, 40), (0.0, 0.25, 1.0), 10_000, 2048, 400_000, seeds=3),
    "paper": Size((1, 5, 10, 20, 40), (0.0, 0.25, 1.0), 40_000, 2048, 400_000, seeds=5),
}


def job(scale: str, inputs: str, examples: int, noise: float, seed: int) -> InContext:
    """One entry.

    Coloured inputs, whose directions are learned one after the other, take twice the steps. Short prompts come in
    larger batches, as many tokens as at the middle of the grid: their gradients have heavy tails, and averaged over few
    prompts Adam's steps are biased towards small weights.
    """
    size = SIZES[scale]
    batch_size = max(size.batch_size, size.batch_size * (MIDDLE[0] + 1) // (examples + 1))
    steps = size.steps if inputs == "white" else 2 * size.steps
    task = Regression(examples, noise, *INPUTS[inputs])
    return InContext(task, steps, batch_size, held_out=size.held_out, lengths=size.lengths, seed=seed)
