"""Texts with labels, byte by byte: which class does a text belong to?

The form in which "Long Range Arena" (Tay et al., 2020, arXiv:2011.04006) reads movie reviews: the bytes of a text, cut
to the length of a row. Texts are the user's own, and so are the questions of their licence; nothing is downloaded. For
the reviews, IMDB (Maas et al., 2011), unpack the published archive::

    LabelledText(path="aclImdb/train", test_path="aclImdb/test", labels=("neg", "pos"), seq_len=4096)

or prepare them by TFDS: ``TFDSLabelledText(name="imdb_reviews", seq_len=4096)``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from seqmodels.data.base import SPLITS, Row, digest
from seqmodels.data.classification import Classification, label_row
from seqmodels.data.corpus import Document, split_by_name
from seqmodels.data.text import TextFiles
from seqmodels.data.tfds import Prepared
from seqmodels.data.tokenizer import ByteTokenizer
from seqmodels.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTexts(Classification):
    """The beginning of a text, as bytes after BOS; slices are the labels."""

    @property
    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def num_classes(self) -> int:
        return len(self.slice_names)

    def row(self, text: bytes | str, label: int) -> Row:
        """The row of a text."""
        text = text.decode() if isinstance(text, bytes) else text
        return label_row(self.tokenizer.document(text)[: self.seq_len], label, self.seq_len, label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledText(ByteTexts):
    """Files ``path/LABEL/*.txt``, UTF-8, held in memory; every label's files are split by a hash of their names.

    Raises (on first use of the texts):
        UserError: a folder is missing, a label has no files, or one is not UTF-8.
    """

    path: str
    """A folder with one folder for every label."""
    test_path: str | None = None
    """A second such folder, all of it the split test, which then takes nothing from `path`."""
    labels: tuple[str, ...] = ()
    """The folders to read; all of `path` when empty. Label ``k`` is the ``k``-th, of all: by name."""
    valid_fraction: float = 0.1
    """Of the bytes of every label."""
    test_fraction: float = 0.1
    """Of the bytes of every label; without meaning where `test_path` is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions = (self.valid_fraction, self.test_fraction)
        if not all(part >= 0 for part in fractions) or not sum(fractions) < 1:
            raise UserError(
                f"valid_fraction={self.valid_fraction}, test_fraction={self.test_fraction}; "
                "use fractions of at least 0 that leave something to train on"
            )
        if len(set(self.labels)) != len(self.labels):
            raise UserError(f"labels: {self.labels} names a folder twice; name each once")

    @functools.cached_property
    def slice_names(self) -> tuple[str, ...]:  # type: ignore[override]  # cached
        return self.labels or tuple(sorted(_by_label(self.path)))

    @functools.cached_property
    def _splits(self) -> dict[str, list[tuple[Document, int]]]:
        """Documents with their labels."""
        splits: dict[str, list[tuple[Document, int]]] = {split: [] for split in SPLITS}
        found = _by_label(self.path)
        test = _by_label(self.test_path) if self.test_path is not None else None
        for label, name in enumerate(self.slice_names):
            held_out = self.test_fraction if test is None else 0
            parts = {**split_by_name(_of(found, name, self.path), self.valid_fraction, held_out)}
            if test is not None:
                parts["test"] = _of(test, name, str(self.test_path))
            for split in SPLITS:
                splits[split] += [(document, label) for document in parts[split]]
        return splits

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        return _Rows(self, [{"text": document.text, "label": label} for document, label in self._splits[split]])

    def fingerprint(self) -> dict[str, Any]:
        """The fields, and for every split the number of texts and a hash of their names, labels and content."""
        fields = super().fingerprint()
        del fields["path"], fields["test_path"]
        content = {
            split: [(document.name, document.text.decode(), label) for document, label in documents]
            for split, documents in self._splits.items()
        }
        summary = {split: {"files": len(texts), "sha256": digest(texts)} for split, texts in content.items()}
        return fields | {"labels": list(self.slice_names), "splits": summary}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDSLabelledText(Prepared, ByteTexts):
    """A prepared dataset of TFDS with a text and a label, such as ``"imdb_reviews"``."""

    splits: tuple[str, str, str] = ("train[:90%]", "train[90%:]", "test")
    text_field: str = "text"
    """The feature that holds the text."""
    label_field: str = "label"
    """The feature that holds the label, a number."""

    @functools.cached_property
    def slice_names(self) -> tuple[str, ...]:  # type: ignore[override]  # cached
        classes = self.features.get(self.label_field, {}).get("classLabel", {}).get("numClasses")
        if classes is None:
            raise UserError(f"label_field: {self.label_field!r} of {self.name} holds no classes; name a ClassLabel")
        return tuple(f"label {label}" for label in range(int(classes)))

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        examples = self.examples(split, self.text_field, self.label_field)
        return _Rows(self, examples, self.text_field, self.label_field)


@dataclasses.dataclass(frozen=True)
class _Rows(Sequence[Row]):
    """Rows that are made when they are asked for."""

    task: ByteTexts
    examples: Sequence[Mapping[str, Any]]
    text: str = "text"
    label: str = "label"

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        example = self.examples[index]
        return self.task.row(example[self.text], int(example[self.label]))


def _by_label(path: str) -> dict[str, list[Document]]:
    """The documents of every folder of `path` by its name; files beside the folders are left out."""
    everything = TextFiles(paths=(path,), suffixes=(".txt",), valid_fraction=0, test_fraction=0).documents()
    found: dict[str, list[Document]] = {}
    for document in everything["train"]:
        label, _, rest = document.name.partition("/")
        if rest:
            found.setdefault(label, []).append(document)
    return found


def _of(found: Mapping[str, list[Document]], label: str, path: str) -> list[Document]:
    if label not in found:
        raise UserError(f"labels: no file {label}/*.txt in {path!r}; its folders with texts are {', '.join(found)}")
    return found[label]
