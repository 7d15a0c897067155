"""Text or code from files and folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqmodels.data.base import SPLITS
from seqmodels.data.corpus import Document, Splits, TextCorpus, split_by_name, split_by_position
from seqmodels.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles(TextCorpus):
    """UTF-8 files, as bytes or tokens of a ``tokenizer.json``.

    Files are split whole, by a hash of their names. Where that would leave a split empty (a single file, or a few big
    ones) every file is split by position instead: its beginning trains.

    Raises (on first use of the text):
        UserError: a path is missing, a folder holds no file with such a suffix, all files are empty, or one is not
            UTF-8.
    """

    paths: tuple[str, ...]
    """Files and folders. Folders are searched at any depth, hidden files and folders left out."""
    suffixes: tuple[str, ...] = ()
    """The files to read in folders, such as ``(".py", ".md")``; all files when empty."""
    valid_fraction: float = 0.05
    """Of the bytes."""
    test_fraction: float = 0.05
    """Of the bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.paths, str) or not self.paths:
            raise UserError(
                f"paths: {self.paths!r} is not a tuple of paths; name at least one file or folder, as ('a',)"
            )
        for name in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not a fraction; use 0 <= {name} < 1")
        held_out = self.valid_fraction + self.test_fraction
        if held_out >= 1:
            raise UserError(f"valid_fraction + test_fraction: {held_out} leaves nothing to train on; use less than 1")

    def documents(self) -> Splits:
        documents = [document for number in range(len(self.paths)) for document in self._read(number)]
        if not any(document.text for document in documents):
            raise UserError(f"paths: no text in {', '.join(self.paths)}, all files are empty; name other files")
        fractions = {"train": 1.0, "valid": self.valid_fraction, "test": self.test_fraction}
        splits = split_by_name(documents, self.valid_fraction, self.test_fraction)
        if all(splits[split] or not fractions[split] for split in SPLITS):
            return splits
        return split_by_position(documents, self.valid_fraction, self.test_fraction)

    def fingerprint(self) -> dict[str, Any]:
        """As for every corpus; where the files lie does not matter, their names and content do."""
        fields = super().fingerprint()
        del fields["paths"]
        return fields

    def _read(self, number: int) -> Iterator[Document]:
        """The files of path `number`, by their name relative to it; the number keeps names of several paths apart."""
        root = Path(self.paths[number])
        if not root.exists():
            raise UserError(f"paths: {self.paths[number]!r} does not exist; give an existing file or folder")
        prefix = f"{number}:" if len(self.paths) > 1 else ""
        if root.is_file():
            yield Document(prefix + root.name, _read_utf8(root))
            return
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        chosen = [name for name in names if not self.suffixes or name.endswith(self.suffixes)]
        if not chosen:
            among = f" with suffix {' or '.join(self.suffixes)} among {len(names)} files" if self.suffixes else ""
            raise UserError(f"paths: no file{among} in {self.paths[number]!r}; change suffixes or the path")
        for name in chosen:
            yield Document(prefix + name, _read_utf8(root / name))


def _read_utf8(path: Path) -> bytes:
    text = path.read_bytes()
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"paths: {str(path)!r} is not UTF-8 at byte {error.start} (0x{text[error.start]:02x}); "
            "convert it with iconv -t UTF-8, or leave it out by suffixes"
        ) from None
    return text
