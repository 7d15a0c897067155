"""What generated tasks share: example ``i`` of a split depends on (seed, split, i) and nothing else.

So the training stream is endless, has random access, and needs no saved data; held-out splits are finite and are drawn
from other random streams. (Two streams may draw the same example by chance where a task has few possible examples.)
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np

from seqmodels.data.base import ENDLESS, SPLITS, RandomAccessDataset, Row
from seqmodels.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticTask(RandomAccessDataset):
    """A task whose examples are drawn at random, one per row. Subclasses define `example`."""

    heldout_examples: int = 1000
    """Examples in each of the splits valid and test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heldout_examples < 1:
            raise UserError(f"heldout_examples: {self.heldout_examples}; use at least 1")

    @abc.abstractmethod
    def example(self, random: np.random.Generator) -> Row:
        """Draw one row."""

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        return Examples(self, split, seed, ENDLESS if split == "train" else self.heldout_examples)


@dataclasses.dataclass(frozen=True)
class Examples(Sequence[Row]):
    """Random access to the examples of one split."""

    task: SyntheticTask
    split: str
    seed: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        key = np.random.SeedSequence([self.seed, SPLITS.index(self.split), index])
        return self.task.example(np.random.Generator(np.random.Philox(key)))


def answer_row(tokens: np.ndarray, answers: np.ndarray, asked: np.ndarray, slice_index: int) -> Row:
    """A row of one document whose loss counts at some positions only.

    Args:
        tokens: inputs [T].
        answers: the targets at the positions `asked` [A].
        asked: positions [A] in ``0 .. T - 1``.
        slice_index: the difficulty, an index into ``slice_names``.
    """
    targets = np.zeros(len(tokens), np.int32)
    mask = np.zeros(len(tokens), np.float32)
    targets[asked], mask[asked] = answers, 1
    return {
        "tokens": tokens.astype(np.int32),
        "targets": targets,
        "loss_mask": mask,
        "segment_ids": np.ones(len(tokens), np.int32),
        "slices": np.asarray(slice_index, np.int32),
    }


def require_mix(name: str, values: tuple[int, ...]) -> None:
    """Raise `UserError` unless `values` is a non-empty tuple of different positive numbers."""
    if not values or min(values) < 1 or len(set(values)) != len(values):
        raise UserError(f"{name}: {values!r}; give one or more different numbers of at least 1, as (4, 8)")
