"""Perplexity and bits per byte on held-out text, overall and by the position in the context.

Text is read document by document through windows of `length` tokens. A window moves on by `stride`, and only targets
that no earlier window has seen count, so that every token of the text is counted exactly once, and all but the first of
a document are predicted from at least ``length - stride`` tokens before them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from eval.base import Task, batches, score
from seqmodels.data.base import Dataset, Row
from seqmodels.data.corpus import TextCorpus
from seqmodels.data.packing import empty_row
from seqmodels.errors import UserError
from seqmodels.models.lm import LanguageModel
from seqmodels.train.experiment import Experiment

Batch = dict[str, np.ndarray]
NEW = "new"  # key of a batch: [B,T] float32, 1 for targets that count


@dataclasses.dataclass(frozen=True)
class PerplexityConfig(Task):
    """Sliding-window perplexity of a text corpus; other data are scored row by row, as the loader packs them."""

    split: str = "test"
    """Which held-out part: valid or test."""
    batch_size: int = 8
    """Windows per call."""
    length: int | None = None
    """Tokens of a window; by default the run's `train.report_length`, or else the length that it was trained on."""
    stride: int | None = None
    """Tokens from one window to the next; by default half a window, or more if that leaves the training length as
    context. Equal to `length`: windows do not overlap."""
    max_tokens: int = 0
    """Stop at the first document at which this many tokens are counted; 0 reads the whole split."""
    buckets: int = 8
    """Ranges of positions for the curve."""

    def __post_init__(self) -> None:
        for field in ("batch_size", "length", "stride", "buckets"):
            value = getattr(self, field)
            if value is not None and value < 1:
                flag = f"--perplexity.{field.replace('_', '-')}"
                raise UserError(f"perplexity.{field}={value} must be at least 1; set {flag}")
        if self.max_tokens < 0:
            raise UserError(f"perplexity.max_tokens={self.max_tokens} must be at least 0; set --perplexity.max-tokens")

    def of_run(self, experiment: Experiment) -> PerplexityConfig:
        return dataclasses.replace(self, length=self.length or experiment.train.report_length or None)

    def windows(self, data: Dataset) -> tuple[int, int]:
        """Length and stride for `data`."""
        length = self.length or data.seq_len
        stride = self.stride or max(-(-length // 2), length - data.seq_len)
        if stride > length:
            raise UserError(
                f"perplexity.stride={stride} exceeds the window of {length} tokens and would skip text; "
                "set --perplexity.stride lower"
            )
        return length, stride

    def measure(self, model: LanguageModel, params: Any, data: Dataset) -> dict[str, float]:
        text, length = isinstance(data, TextCorpus), self.windows(data)[0]
        stream, size = self._text(data) if isinstance(data, TextCorpus) else (self._rows(data), 0)
        length = length if text else data.seq_len
        by_position = np.zeros((2, length))  # loss and count of all targets, whether they count in the total or not
        total, correct, tokens = 0.0, 0, 0
        for batch in stream:
            scores, new = score(model, params, batch), batch[NEW]
            total += float(np.sum(scores.loss * new, dtype=np.float64))
            correct += int(np.sum(scores.correct * new))
            tokens += int(new.sum())
            by_position += np.stack([scores.loss, batch["loss_mask"]]).sum(axis=1, dtype=np.float64)
        if not tokens:
            raise UserError(f"perplexity.split={self.split!r} holds no target; choose another split")
        results = {"loss": total / tokens, "perplexity": math.exp(min(total / tokens, 700.0)), "tokens": float(tokens)}
        results["accuracy"] = correct / tokens
        if size:
            results |= {"bits_per_byte": total / math.log(2) / size, "bytes": float(size)}
        return results | bucketed(by_position, self.buckets)

    def _rows(self, data: Dataset) -> Iterator[Batch]:
        counted = 0
        for batch in batches(data, self.split, self.batch_size):
            yield batch | {NEW: batch["loss_mask"]}
            counted += int(batch["loss_mask"].sum())
            if self.max_tokens and counted >= self.max_tokens:
                return

    def _text(self, data: TextCorpus) -> tuple[Iterator[Batch], int]:
        """Batches of windows, and the bytes of the documents that they cover."""
        if self.split not in ("valid", "test", "train"):
            raise UserError(f"perplexity.split={self.split!r} is unknown; set --perplexity.split to valid or test")
        chosen, counted, size = [], 0, 0
        for document in data.documents()[self.split]:
            if self.max_tokens and counted >= self.max_tokens:
                break
            chosen.append(data.tokenizer.document(document.text.decode()))
            counted += len(chosen[-1]) - 1
            size += len(document.text)
        length, stride = self.windows(data)
        rows = [row for ids in chosen for row in cut(ids, length, stride)]
        rows.sort(key=lambda row: -int(row["segment_ids"].sum()))
        return stack(rows, self.batch_size, length), size

    def plot(self, results: dict[str, float], axes: Any) -> None:
        curve = self.curve(results, "loss")
        axes.plot(range(len(curve)), [value / math.log(2) for value in curve.values()], marker="o")
        axes.set_xticks(range(len(curve)), curve, rotation=45, ha="right")
        axes.set(xlabel="position in the window", ylabel="bits per token", title="Loss by position")


def cut(ids: np.ndarray, length: int, stride: int) -> list[Row]:
    """The windows of a document ``ids [N+1]``; their `NEW` masks count each of its N targets once."""
    pairs = len(ids) - 1
    rows, seen, start = [], 0, 0
    while seen < pairs:
        end = min(start + length, pairs)
        row = empty_row(length) | {NEW: np.zeros(length, np.float32)}
        size = end - start
        row["tokens"][:size], row["targets"][:size] = ids[start:end], ids[start + 1 : end + 1]
        row["loss_mask"][:size] = row["segment_ids"][:size] = 1
        row[NEW][seen - start : size] = 1
        rows.append(row)
        seen, start = end, start + stride
    return rows


def stack(rows: list[Row], batch_size: int, length: int) -> Iterator[Batch]:
    """Batches of `batch_size` rows; rows of padding fill the last one."""
    blank = empty_row(length) | {NEW: np.zeros(length, np.float32)}
    for first in range(0, len(rows), batch_size):
        group = rows[first : first + batch_size]
        group += [blank] * (batch_size - len(group))
        yield {name: np.stack([row[name] for row in group]) for name in blank}


def bucketed(by_position: np.ndarray, buckets: int) -> dict[str, float]:
    """Mean loss in equal ranges of positions from ``[2,T]`` (sums of losses, counts), named ``loss@first-last``."""
    length = by_position.shape[1]
    edges = np.unique(np.linspace(0, length, min(buckets, length) + 1).astype(int))
    found = {}
    for first, last in itertools.pairwise(edges):
        loss, count = by_position[:, first:last].sum(axis=1)
        if count:
            found[f"loss@{first}-{last - 1}"] = float(loss / count)
    return found
