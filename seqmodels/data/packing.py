"""Packing: documents to rows of fixed length.

A document of ``n + 1`` tokens is ``n`` pairs *(input, target)*, the target being the next token. Pairs, not tokens, are
laid into rows of ``T``, so that a target never belongs to another document and, with a BOS token, every token of the
text is predicted exactly once. ``segment_ids`` count the pieces of a row from 1; 0 is padding.

Strategies:

* ``"chunk"``: concatenate, then split every ``T`` pairs. No padding but in the last row. A document that continues in
  the next row is a new segment there.
* ``"first_fit"``, ``"best_fit"``: pieces of at most ``T`` pairs, the longest first, each into the first row, or the
  fullest one, that still has room for it. Only documents longer than ``T`` are cut; rows end in padding.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from seqmodels.data.base import Row

Packing = Literal["chunk", "first_fit", "best_fit"]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of many documents, one after the other."""

    flat: np.ndarray  # [N] uint16 or int32
    offsets: np.ndarray  # [documents + 1] int64: where each document begins in `flat`

    @staticmethod
    def of(documents: Iterable[np.ndarray], vocab_size: int) -> Tokens:
        """Collect documents (int arrays [n]) in the smallest dtype that holds the vocabulary."""
        dtype = np.uint16 if vocab_size <= 2**16 else np.int32
        parts = [np.asarray(document).astype(dtype) for document in documents]
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return Tokens(np.concatenate([*parts, np.zeros(0, dtype)]), offsets)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which pieces of the documents make up which row."""

    start: np.ndarray  # [pieces] int64: a piece's first input token in `Tokens.flat`
    length: np.ndarray  # [pieces] int64: its pairs, at least 1
    row: np.ndarray  # [rows + 1] int64: a row's first piece


def plan_rows(offsets: np.ndarray, seq_len: int, packing: Packing) -> Plan:
    """Plan the rows of documents that begin at `offsets` (int64 [documents + 1])."""
    pairs = np.maximum(np.diff(offsets) - 1, 0)
    begins = np.cumsum(pairs) - pairs  # [documents] where a document begins among all pairs
    total = int(pairs.sum())
    if packing == "chunk":
        borders = np.arange(0, total, seq_len)
    else:  # a document's own multiples of T
        borders = np.concatenate([[], *(np.arange(b, b + n, seq_len) for b, n in zip(begins, pairs))])
    cuts = np.unique(np.concatenate([begins[pairs > 0], borders])).astype(np.int64)
    document = np.searchsorted(begins + pairs, cuts, side="right")
    start = offsets[document] + cuts - begins[document]
    length = np.diff(np.append(cuts, total))
    if packing == "chunk":
        rows = -(-total // seq_len)
        return Plan(start, length, np.searchsorted(cuts, np.arange(rows + 1) * seq_len))
    order = np.argsort(-length, kind="stable")
    row = _GREEDY[packing](length[order].tolist(), seq_len)
    grouped = order[np.argsort(row, kind="stable")]
    return Plan(start[grouped], length[grouped], np.append(0, np.cumsum(np.bincount(row))))


def _best_fit(lengths: Sequence[int], size: int) -> np.ndarray:
    """The row of every piece: the one with the least room that suffices."""
    open_rows: dict[int, list[int]] = {}  # by room left
    rooms: list[int] = []  # the keys of open_rows, sorted
    row, count = np.zeros(len(lengths), np.int64), 0
    for i, length in enumerate(lengths):
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            room, row[i], count = size, count, count + 1
        else:
            room = rooms[at]
            row[i] = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        if room > length:
            left = room - length
            if left not in open_rows:
                open_rows[left] = []
                bisect.insort(rooms, left)
            open_rows[left].append(int(row[i]))
    return row


def _first_fit(lengths: Sequence[int], size: int) -> np.ndarray:
    """The row of every piece: the first with enough room. A tree of maxima over the rows finds it in log time."""
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    room = [size] * (2 * leaves)  # node i has the children 2i and 2i + 1
    row = np.zeros(len(lengths), np.int64)
    for i, length in enumerate(lengths):
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        row[i] = node - leaves
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return row


_GREEDY = {"first_fit": _first_fit, "best_fit": _best_fit}


@dataclasses.dataclass(frozen=True)
class PackedRows(Sequence[Row]):
    """Random access to the rows of a plan."""

    tokens: Tokens
    plan: Plan
    seq_len: int

    def __len__(self) -> int:
        return len(self.plan.row) - 1

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        row = empty_row(self.seq_len)
        at = 0
        for segment, piece in enumerate(range(self.plan.row[index], self.plan.row[index + 1]), 1):
            start, length = self.plan.start[piece], self.plan.length[piece]
            row["tokens"][at : at + length] = self.tokens.flat[start : start + length]
            row["targets"][at : at + length] = self.tokens.flat[start + 1 : start + length + 1]
            row["segment_ids"][at : at + length] = segment
            at += length
        row["loss_mask"][:at] = 1
        return row


def empty_row(seq_len: int) -> Row:
    """A row of padding."""
    row = {key: np.zeros(seq_len, np.int32) for key in ("tokens", "targets", "segment_ids")}
    return row | {"loss_mask": np.zeros(seq_len, np.float32)}
