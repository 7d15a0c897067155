"""Recall from the context by the number of key-value pairs in it.

A model trained on MQAR is asked its own task. A byte-level language model is asked in Python source: a table of pairs
of random lower-case letters and digits in one line, then one line per pair, in random order::

    table = {'qz': 4831, 'ab': 1770}
    assert table['ab'] == 1770
    assert table['qz'] == 4831

Only the digits after ``==`` count; a row is exact when all of its answers are.
"""

from __future__ import annotations

import dataclasses
import string
from typing import Any

import numpy as np

from eval.base import Task, require_bytes, score_slices
from seqmodels.data.base import Dataset, Row
from seqmodels.data.mqar import MQAR
from seqmodels.data.packing import empty_row
from seqmodels.data.synthetic import SyntheticTask
from seqmodels.data.tokenizer import ByteTokenizer
from seqmodels.errors import UserError
from seqmodels.models.lm import LanguageModel

LETTERS = np.array([a + b for a in string.ascii_lowercase for b in string.ascii_lowercase])
DIGITS = 4


@dataclasses.dataclass(frozen=True)
class RecallConfig(Task):
    """Accuracy of recalled values by number of pairs."""

    num_pairs: tuple[int, ...] = ()
    """Numbers of pairs; by default those of the training data (MQAR), or 1, 2, 4, 8 and 16 (text)."""
    examples: int = 256
    """Rows in all; each draws one of the numbers of pairs."""
    batch_size: int = 16
    """Rows per call."""

    def __post_init__(self) -> None:
        for field in ("examples", "batch_size"):
            if getattr(self, field) < 1:
                flag = f"--recall.{field.replace('_', '-')}"
                raise UserError(f"recall.{field}={getattr(self, field)} must be at least 1; set {flag}")

    def measure(self, model: LanguageModel, params: Any, data: Dataset) -> dict[str, float]:
        questions = self.questions(data)
        stream = questions.make("test", batch_size=self.batch_size, repeat=False)
        scores = score_slices(model, params, questions, stream)
        results = {"accuracy": float(scores.correct.sum() / scores.tokens.sum())}
        for name, rows, exact, tokens, correct in zip(questions.slice_names, *scores, strict=True):
            if rows:
                results |= {f"accuracy@{name}": float(correct / tokens), f"exact@{name}": float(exact / rows)}
        return results

    def questions(self, data: Dataset) -> Dataset:
        """The rows that a model trained on `data` is asked."""
        if isinstance(data, MQAR):
            pairs = self.num_pairs or data.num_pairs
            return dataclasses.replace(data, num_pairs=pairs, heldout_examples=self.examples)
        require_bytes("recall", data)
        pairs = self.num_pairs or (1, 2, 4, 8, 16)
        return TextRecall(num_pairs=pairs, seq_len=TextRecall.length(max(pairs)), heldout_examples=self.examples)

    def plot(self, results: dict[str, float], axes: Any) -> None:
        for kind in ("accuracy", "exact"):
            curve = self.curve(results, kind)
            axes.plot(list(curve), list(curve.values()), marker="o", label=kind)
        axes.set(xlabel="pairs in the context", ylabel="share that is right", ylim=(-0.02, 1.02), title="Recall")
        axes.legend()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecall(SyntheticTask):
    """The text form of the task; see the module's docstring."""

    num_pairs: tuple[int, ...] = (4,)
    """Each row draws one of these numbers of pairs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_pairs or min(self.num_pairs) < 1 or max(self.num_pairs) > len(LETTERS):
            raise UserError(
                f"recall.num_pairs={self.num_pairs} must be numbers from 1 to {len(LETTERS)}; set --recall.num-pairs"
            )
        if self.seq_len < self.length(max(self.num_pairs)):
            raise UserError(f"seq_len={self.seq_len} cannot hold {max(self.num_pairs)} pairs; raise it")

    @staticmethod
    def length(pairs: int) -> int:
        """Tokens of a row with `pairs` pairs."""
        return len(_document([("aa", "0" * DIGITS)] * pairs, range(pairs))[0])  # BOS comes in, the last byte goes out

    @property
    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def slice_names(self) -> tuple[str, ...]:
        return tuple(map(str, self.num_pairs))

    def example(self, random: np.random.Generator) -> Row:
        choice = int(random.integers(len(self.num_pairs)))
        count = self.num_pairs[choice]
        keys = random.choice(LETTERS, count, replace=False)
        values = [str(value) for value in random.integers(10 ** (DIGITS - 1), 10**DIGITS, size=count)]
        text, answers = _document(list(zip(keys, values, strict=True)), random.permutation(count))
        row = empty_row(self.seq_len)
        ids = self.tokenizer.document(text)
        size = len(ids) - 1
        row["tokens"][:size], row["segment_ids"][:size] = ids[:-1], 1
        for start in answers:
            row["targets"][start : start + DIGITS] = ids[start + 1 : start + 1 + DIGITS]
            row["loss_mask"][start : start + DIGITS] = 1
        return row | {"slices": np.asarray(choice, np.int32)}


def _document(pairs: list[tuple[str, str]], order: Any) -> tuple[str, list[int]]:
    """The text, and where in it the answers begin."""
    text = "table = {" + ", ".join(f"'{key}': {value}" for key, value in pairs) + "}\n"
    starts = []
    for i in order:
        key, value = pairs[i]
        text += f"assert table['{key}'] == "
        starts.append(len(text))
        text += f"{value}\n"
    return text, starts
