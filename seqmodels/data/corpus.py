"""What datasets of text in memory share: the split by file, the tokens, the packed rows."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from seqmodels.data import packing
from seqmodels.data.base import SPLITS, RandomAccessDataset, Row, Tokenizer, digest
from seqmodels.data.tokenizer import load_tokenizer


class Document(NamedTuple):
    """A text with a name: a file's path relative to its root."""

    name: str
    text: bytes  # UTF-8


Splits = Mapping[str, Sequence[Document]]


def split_by_name(documents: Sequence[Document], valid: float, test: float) -> Splits:
    """Whole documents to ``train``, ``valid`` and ``test``, by a hash of their names.

    In the order of the hashes a document goes to the first of valid and test that has room for it, their room being the
    fractions `valid` and `test` of all bytes; what fits in neither trains. So the fractions hold in bytes, a huge
    document never ends up in a small split, and the result does not depend on the order of `documents`.
    """
    total = sum(len(document.text) for document in documents)
    room = {"valid": valid * total, "test": test * total}
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in sorted(documents, key=lambda d: hashlib.sha256(os.fsencode(d.name)).digest()):
        fitting = (split for split in room if document.text and len(document.text) <= room[split])
        split = next(fitting, "train")
        splits[split].append(document)
        if split in room:
            room[split] -= len(document.text)
    return {split: tuple(sorted(chosen)) for split, chosen in splits.items()}


def split_by_position(documents: Sequence[Document], valid: float, test: float) -> Splits:
    """The beginning of every document trains, then come its valid and its test part, cut between characters."""
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for name, text in documents:
        first = _character_start(text, round(len(text) * (1 - valid - test)))
        second = _character_start(text, round(len(text) * (1 - test)))
        for split, part in zip(SPLITS, (text[:first], text[first:second], text[second:])):
            splits[split].append(Document(name, part))
    return splits


def _character_start(text: bytes, at: int) -> int:
    while 0 < at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCorpus(RandomAccessDataset):
    """Documents held in memory, packed into rows. Subclasses say which documents belong to which split."""

    tokenizer_file: str | None = None
    """A Hugging Face ``tokenizer.json``; bytes without one."""
    packing: packing.Packing = "chunk"
    """How documents are laid into rows; see `seqmodels.data.packing`."""

    @abc.abstractmethod
    def documents(self) -> Splits:
        """The documents of every split."""

    @functools.cached_property
    def _documents(self) -> Splits:
        return self.documents()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]  # cached
        return load_tokenizer(self.tokenizer_file)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def bytes_of(self, split: str) -> bytes:
        """The raw bytes of a split, one document after the other: what a compressor would be given."""
        return b"".join(document.text for document in self._documents[split])

    def manifest(self) -> dict[str, dict[str, str]]:
        """The sha256 of every document by name, for every split."""
        return {
            split: {name: hashlib.sha256(text).hexdigest() for name, text in documents}
            for split, documents in self._documents.items()
        }

    @functools.cached_property
    def _summary(self) -> dict[str, Any]:
        return {
            split: {
                "files": len(names),
                "bytes": sum(len(document.text) for document in self._documents[split]),
                "sha256": digest(names),
            }
            for split, names in self.manifest().items()
        }

    def fingerprint(self) -> dict[str, Any]:
        """The fields, the tokenizer, and for every split its files, bytes, and the sha256 of its `manifest`."""
        fields = super().fingerprint()
        del fields["tokenizer_file"]  # where it lies does not matter, its content does
        return fields | {"tokenizer": self.tokenizer.fingerprint(), "splits": self._summary}

    @functools.cached_property
    def _rows(self) -> dict[str, packing.PackedRows]:
        return {}

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        if split not in self._rows:
            texts = (document.text.decode() for document in self._documents[split])
            tokens = packing.Tokens.of(map(self.tokenizer.document, texts), self.vocab_size)
            plan = packing.plan_rows(tokens.offsets, self.seq_len, self.packing)
            self._rows[split] = packing.PackedRows(tokens, plan, self.seq_len)
        return self._rows[split]
