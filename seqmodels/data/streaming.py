"""Tokenise and pack documents as they stream by, on Grain. Imports Grain: import this where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain import experimental

from seqmodels.data.base import Row, Shard, Tokenizer
from seqmodels.data.packing import Packing, empty_row
from seqmodels.data.pipeline import stack
from seqmodels.errors import UserError

OPEN_ROWS = 64
"""Rows that the fitting strategies fill at the same time."""
MIXED_ROWS = 256
"""Rows that are shuffled among each other, so that a batch does not come from one long document."""
READ_AHEAD = 64
"""Documents that are read and tokenised in advance."""


@dataclasses.dataclass(frozen=True)
class ToPairs(grain.transforms.Map):
    """An example to the inputs and targets of its document, int32 [N]."""

    field: str
    tokenizer: Tokenizer

    def map(self, element: Mapping[str, Any]) -> Row:
        text = element[self.field]
        try:
            text = text.decode() if isinstance(text, bytes) else str(text)
        except UnicodeDecodeError as error:
            raise UserError(f"field: {self.field!r} holds text that is not UTF-8 ({error}); convert the data") from None
        document = self.tokenizer.document(text)
        return {"tokens": document[:-1], "targets": document[1:]}


@dataclasses.dataclass(frozen=True)
class Cut(experimental.FlatMapTransform):
    """Documents to pieces of at most `size` pairs: the fitting packers refuse longer ones."""

    size: int
    max_fan_out: int = 2**31  # a bound that Grain asks for

    def flat_map(self, element: Row) -> list[Row]:
        length = len(element["tokens"])
        return [{key: x[at : at + self.size] for key, x in element.items()} for at in range(0, length, self.size)]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches of packed rows from examples with random access."""

    source: Sequence[Mapping[str, Any]]
    field: str
    tokenizer: Tokenizer
    seq_len: int
    packing: Packing
    num_threads: int

    def batches(self, batch_size: int, seed: int, shard: Shard, repeat: bool) -> grain.IterDataset:
        """See `seqmodels.data.tfds` for what shards share."""
        examples = grain.MapDataset.source(self.source).shuffle(seed)
        if repeat:
            rows = self._rows(examples.repeat()[shard.index :: shard.count], seed)
            return rows.batch(batch_size, batch_fn=lambda found: self._batch(found, batch_size))
        whole = batch_size * shard.count
        block = slice(shard.index * batch_size, (shard.index + 1) * batch_size)
        batches = self._rows(examples, seed).batch(whole, batch_fn=lambda found: self._batch(found, whole))
        return batches.map(lambda batch: {key: x[block] for key, x in batch.items()})

    def _rows(self, examples: grain.MapDataset, seed: int) -> grain.IterDataset:
        reading = grain.ReadOptions(num_threads=self.num_threads, prefetch_buffer_size=READ_AHEAD)
        pairs = examples.map(ToPairs(self.field, self.tokenizer)).to_iter_dataset(reading)
        pairs = pairs.filter(lambda pair: len(pair["tokens"]) > 0)
        lengths = {"tokens": self.seq_len, "targets": self.seq_len}
        if self.packing == "chunk":
            packed = experimental.ConcatThenSplitIterDataset(pairs, length_struct=lengths)
        else:
            pack = {"first_fit": experimental.FirstFitPackIterDataset, "best_fit": experimental.BestFitPackIterDataset}
            pieces = experimental.FlatMapIterDataset(pairs, Cut(self.seq_len))
            packed = pack[self.packing](pieces, length_struct=lengths, num_packing_bins=OPEN_ROWS, seed=seed)
        # Grain adds the window's number to the seed, which must stay below 2**32
        mixed = experimental.WindowShuffleIterDataset(packed, window_size=MIXED_ROWS, seed=seed // 2)
        return mixed.map(_row)

    def _batch(self, rows: Sequence[Row], size: int) -> Row:
        return stack(rows, size, empty_row(self.seq_len))


def _row(packed: Row) -> Row:
    segment_ids = packed["tokens_segment_ids"].astype(np.int32)
    return {
        "tokens": packed["tokens"].astype(np.int32),
        "targets": packed["targets"].astype(np.int32),
        "segment_ids": segment_ids,
        "loss_mask": (segment_ids != 0).astype(np.float32),
    }
