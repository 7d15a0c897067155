"""Classification: every row has one label, which is the target at its last real position.

So the one training loop serves it, with its accuracy and its slices. A `models.SequenceClassifier` is asked once per
row, whatever it pools; a causal language model answers at the last position, where it has read everything. A target
``k`` stands for class ``k``, whatever the token ``k`` of the inputs means. `labels` and `intensities` (of tokens that
are grey values) give batches to models outside of the loop.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from seqmodels.data.base import RandomAccessDataset, Row
from seqmodels.data.packing import empty_row
from seqmodels.data.synthetic import Examples, SyntheticTask
from seqmodels.errors import UserError

LEVELS = 256
"""Grey values that are told apart: token 0 is black, 255 white."""


def whole(value: object, least: int) -> bool:
    """Whether a field holds a whole number of at least `least`."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(RandomAccessDataset):
    """Rows with one label each."""

    @property
    @abc.abstractmethod
    def num_classes(self) -> int:
        """Labels lie in ``0 .. num_classes - 1``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationTask(Classification, SyntheticTask):
    """Generated rows with one label each. Subclasses define `example`."""

    train_examples: int | None = None
    """Examples in the split train, which are then repeated; ``None``: new ones without end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_examples is not None and not whole(self.train_examples, 1):
            raise UserError(f"train_examples: {self.train_examples}; use at least 1, or None for no end")

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        if split == "train" and self.train_examples is not None:
            return Examples(self, split, seed, self.train_examples)
        return super().rows(split, seed)


def label_row(tokens: np.ndarray | Sequence[int], label: int, seq_len: int, slice_index: int) -> Row:
    """A row of one document and its label, padded at its end.

    Args:
        tokens: inputs [N], at least one and at most `seq_len`.
        label: the target at position ``N - 1``, the only one that counts.
        seq_len: tokens of the row.
        slice_index: an index into ``slice_names``.
    """
    size = len(tokens)
    row = empty_row(seq_len)
    row["tokens"][:size], row["segment_ids"][:size] = tokens, 1
    row["targets"][size - 1], row["loss_mask"][size - 1] = label, 1
    return row | {"slices": np.asarray(slice_index, np.int32)}


def labels(batch: Row) -> Int32[np.ndarray, " B"]:
    """The labels of a batch (of padding rows: 0)."""
    return batch["targets"].sum(axis=1, dtype=np.int32)


def intensities(batch: Row) -> Float32[np.ndarray, "B T 1"]:
    """Tokens that are grey values as numbers from 0 to 1, for models of continuous input."""
    return (batch["tokens"][..., None] / np.float32(LEVELS - 1)).astype(np.float32)
