"""Passkey retrieval: a number hidden in filler text must be repeated at the end.

The task of "Landmark Attention" (Mohtashami and Jaggi, 2023, arXiv:2305.16300), a needle in a haystack, on bytes: BOS,
filler, one sentence with the key, filler, the question, the key. Only the key's digits at the end count. How long the
text is, and where in it the key stands (0 is the beginning, 1 the end), make the slices.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from typing import Any, Literal

import numpy as np

from seqmodels.data.base import Row
from seqmodels.data.packing import empty_row
from seqmodels.data.stdlib import read_stdlib
from seqmodels.data.synthetic import SyntheticTask, require_mix
from seqmodels.data.tokenizer import ByteTokenizer
from seqmodels.errors import UserError

NEEDLE = "\nThe pass key is {key}. Remember it.\n"
QUESTION = "\nWhat is the pass key? The pass key is "

SENTENCES = (
    "The river runs past the old mill.",
    "Rain fell on the roof all night.",
    "A cat sleeps in the morning sun.",
    "The baker opens the shop at six.",
    "Two boats wait in the quiet bay.",
    "Leaves turn red before they fall.",
    "The train was late again today.",
    "Someone left a lamp on upstairs.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passkey(SyntheticTask):
    """Repeat the key hidden in filler text, byte by byte; slices are length by depth."""

    seq_len: int = 512
    lengths: tuple[int, ...] = ()
    """Each row draws one of these lengths in bytes, the answer included; shorter rows are padded. Empty: `seq_len`."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Each row draws where the key stands, as a fraction of the filler."""
    digits: int = 5
    """Of the key."""
    filler: Literal["sentences", "stdlib"] = "sentences"
    """A few sentences in random order, or a random stretch of the standard library's training source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.digits < 1:
            raise UserError(f"digits: {self.digits}; use at least 1")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise UserError(f"depths: {self.depths!r}; give one or more fractions from 0 to 1")
        require_mix("lengths", self._lengths)
        if max(self._lengths) > self.seq_len:
            raise UserError(f"lengths: {max(self._lengths)} bytes exceed seq_len {self.seq_len}; raise seq_len")
        if min(self._lengths) < self._fixed:
            raise UserError(
                f"{'lengths' if self.lengths else 'seq_len'}: {min(self._lengths)} bytes cannot hold key and question; "
                f"use at least {self._fixed}"
            )

    @property
    def _lengths(self) -> tuple[int, ...]:
        return self.lengths or (self.seq_len,)

    @property
    def _fixed(self) -> int:
        """Bytes of a row besides filler: the last digit is no input, BOS is."""
        return len(NEEDLE.format(key="0" * self.digits)) + len(QUESTION) + self.digits

    @property
    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def slice_names(self) -> tuple[str, ...]:
        return tuple(f"length {n} depth {d:g}" for n, d in itertools.product(self._lengths, self.depths))

    def fingerprint(self) -> dict[str, Any]:
        """The fields, and the hash of the standard library's text where that is the filler."""
        source = {"filler_sha256": hashlib.sha256(stdlib_source()).hexdigest()} if self.filler == "stdlib" else {}
        return super().fingerprint() | source

    def example(self, random: np.random.Generator) -> Row:
        choice = int(random.integers(len(self.slice_names)))
        length = self._lengths[choice // len(self.depths)]
        depth = self.depths[choice % len(self.depths)]
        key = "".join(map(str, random.integers(10, size=self.digits)))
        filler = self._filler(random, length - self._fixed)
        before = round(depth * len(filler))
        needle, question = NEEDLE.format(key=key).encode(), (QUESTION + key).encode()
        text = np.frombuffer(filler[:before] + needle + filler[before:] + question, np.uint8)
        row = empty_row(self.seq_len)
        row["tokens"][:length] = [self.tokenizer.bos_id, *text[:-1]]
        row["targets"][length - self.digits : length] = text[-self.digits :]
        row["loss_mask"][length - self.digits : length] = 1
        row["segment_ids"][:length] = 1
        return row | {"slices": np.asarray(choice, np.int32)}

    def _filler(self, random: np.random.Generator, size: int) -> bytes:
        if self.filler == "stdlib":
            source = stdlib_source()
            begin = int(random.integers(max(len(source) - size, 0) + 1))
            text = source[begin : begin + size]
        else:
            count = size // min(map(len, SENTENCES)) + 1
            text = " ".join(SENTENCES[i] for i in random.integers(len(SENTENCES), size=count)).encode()
        if len(text) < size:
            raise UserError(
                f"lengths: {size} bytes of filler exceed the standard library's {len(text)}; use 'sentences'"
            )
        return text[:size]


@functools.lru_cache(maxsize=1)
def stdlib_source() -> bytes:
    """The ASCII characters of the standard library's training files (any cut of them is UTF-8)."""
    text = b"".join(document.text for document in read_stdlib()["train"])
    return text.decode().encode("ascii", errors="ignore")
