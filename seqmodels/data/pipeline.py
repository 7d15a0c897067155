"""What lies between the rows of a dataset and its batches, on Grain. Imports Grain: import this where it is used."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import grain
import numpy as np

from seqmodels.data.base import ENDLESS, Row, Shard

READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
"""One thread assembles the next batches; more threads only contend for the interpreter's lock."""


class GlobalBatches(grain.MapDataset):
    """Batch ``k`` of one shard: its block of rows of global batch ``k``; rows past the end are padding."""

    def __init__(self, rows: grain.MapDataset[Row], batch_size: int, shard: Shard) -> None:
        super().__init__(rows)
        self._batch_size = batch_size
        self._shard = shard
        self._global = batch_size * shard.count

    def __len__(self) -> int:
        return min(-(-len(self._parent) // self._global), sys.maxsize)

    def __getitem__(self, index):  # a slice or a number; Grain's signature
        if isinstance(index, slice):
            return self.slice(index)
        start = index * self._global + self._shard.index * self._batch_size
        stop = min(start + self._batch_size, len(self._parent))
        rows: list[Row] = [self._parent[i] for i in range(start, stop)]  # type: ignore[misc]  # no row is missing
        template: Row = rows[0] if rows else self._parent[index * self._global]  # type: ignore[assignment]
        return stack(rows, self._batch_size, template)


def stack(rows: Sequence[Row], size: int, template: Row) -> Row:
    """Rows to a batch of `size` rows; missing ones are padding: zeros, so segment 0 and no loss."""
    missing = [{key: np.zeros_like(value) for key, value in template.items()}] * (size - len(rows))
    return {key: np.stack([row[key] for row in (*rows, *missing)]) for key in template}


def global_batches(rows: Sequence[Row], batch_size: int, seed: int, shard: Shard, repeat: bool) -> grain.IterDataset:
    """Shuffle, repeat, shard and batch a source with random access. The state is the index of the global batch."""
    dataset = grain.MapDataset.source(rows)
    if len(rows) < ENDLESS:
        dataset = dataset.shuffle(seed)
        dataset = dataset.repeat() if repeat else dataset
    return GlobalBatches(dataset, batch_size, shard).to_iter_dataset(READ_AHEAD)
