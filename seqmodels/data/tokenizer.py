"""Tokenizers: plain bytes, or any Hugging Face ``tokenizer.json``."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqmodels.data.base import Tokenizer as Tokenizer  # the protocol, beside what implements it
from seqmodels.errors import UserError, suggest

if TYPE_CHECKING:
    import tokenizers

BOS_NAMES = ("<|bos|>", "<bos>", "<s>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "[CLS]")
"""Names under which tokenizers in the wild keep the token that starts a document, in order of preference."""


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """The 256 bytes of UTF-8 and one special token: 256 begins a document."""

    @property
    def vocab_size(self) -> int:
        return 257

    @property
    def bos_id(self) -> int:
        return 256

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes of `text`."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes among `ids`; bytes that are not UTF-8 become U+FFFD."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode(errors="replace")

    def document(self, text: str) -> np.ndarray:
        """BOS and the bytes of `text`, int32 [1+N]."""
        return np.concatenate([[self.bos_id], np.frombuffer(text.encode(), np.uint8)]).astype(np.int32)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "bytes"}


@dataclasses.dataclass(frozen=True)
class HFTokenizer:
    """A ``tokenizer.json`` of Hugging Face's ``tokenizers``.

    `bos` names the token that starts a document. By default the first of `BOS_NAMES` in the vocabulary is taken;
    without any, documents start with their first token, which is then not predicted.

    Raises:
        UserError: the file is missing or no tokenizer, `bos` is not in the vocabulary, or ``tokenizers`` is not
            installed.
    """

    path: str
    bos: str | None = None

    def __post_init__(self) -> None:
        if self.bos is not None and self._tokenizer.token_to_id(self.bos) is None:
            hint = suggest(self.bos, self._tokenizer.get_vocab())
            raise UserError(f"bos: {self.bos!r} is not in the vocabulary of {self.path}{hint}; name one of its tokens")

    @functools.cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        if not Path(self.path).is_file():
            raise UserError(f"tokenizer_file: {self.path!r} does not exist; give the path of a tokenizer.json")
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise UserError(
                f"tokenizer_file: {self.path!r} needs the package tokenizers; pip install 'seqmodels[interop]'"
            ) from None
        try:
            return tokenizers.Tokenizer.from_file(self.path)
        except Exception as error:  # the library raises bare Exception
            reason = str(error).splitlines()[0]
            raise UserError(
                f"tokenizer_file: {self.path!r} is not a tokenizer.json of Hugging Face tokenizers ({reason}); "
                "save one with Tokenizer.save"
            ) from None

    @functools.cached_property
    def _size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def vocab_size(self) -> int:
        """The largest id + 1: vocabularies may have gaps."""
        return self._size

    @property
    def bos_id(self) -> int | None:
        names = BOS_NAMES if self.bos is None else (self.bos,)
        found = (self._tokenizer.token_to_id(name) for name in names)
        return next((i for i in found if i is not None), None)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def document(self, text: str) -> np.ndarray:
        bos = [] if self.bos_id is None else [self.bos_id]
        return np.asarray(bos + self.encode(text), np.int32)

    def fingerprint(self) -> dict[str, Any]:
        """The file's hash; the same file elsewhere is the same tokenizer."""
        self._tokenizer  # noqa: B018 - its errors come first
        return {"kind": "file", "sha256": hashlib.sha256(Path(self.path).read_bytes()).hexdigest(), "bos": self.bos_id}


def load_tokenizer(file: str | None) -> Tokenizer:
    """Bytes when `file` is ``None``, else the ``tokenizer.json`` at that path."""
    return ByteTokenizer() if file is None else HFTokenizer(file)
