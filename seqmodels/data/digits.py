"""Handwritten digits, read pixel by pixel: which digit is it?

The task of "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units" (Le et al., 2015,
arXiv:1504.00941), there on MNIST. Pictures are read row by row, or in one random order that is the same for all of them
("permuted"). Tokens are grey values, 0 black and 255 white.

* `Digits`: 1,797 pictures of 8 x 8 pixels that scikit-learn brings along. Origin: the test half of "Optical Recognition
  of Handwritten Digits" (Alpaydin and Kaynak, 1998) of the UCI repository, which gives it under CC BY 4.0. Nothing is
  downloaded.
* `MNIST`: 70,000 pictures of 28 x 28 pixels, prepared by TFDS beforehand. Origin: LeCun, Cortes and Burges, from NIST's
  Special Databases 1 and 3; TFDS names no licence, so look for the terms yourself.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from seqmodels.data.base import SPLITS, Row, digest
from seqmodels.data.classification import LEVELS, Classification, label_row, whole
from seqmodels.data.tfds import Prepared
from seqmodels.errors import UserError

SPLIT_SEED = 0
"""Of the order in which `Digits` are cut into splits."""
HELD_OUT = 0.1
"""Share of every digit in each of the splits valid and test of `Digits`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelSequences(Classification):
    """Pictures of digits as sequences; slices are the digits."""

    permutation: int | None = None
    """Seed of the order in which pixels are read; ``None``: row by row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seq_len < self.pixels:
            raise UserError(f"seq_len: {self.seq_len} tokens for {self.pixels} pixels; use at least {self.pixels}")
        if self.permutation is not None and not whole(self.permutation, 0):
            raise UserError(f"permutation: {self.permutation!r}; use a whole number of at least 0 as a seed, or None")

    @property
    @abc.abstractmethod
    def pixels(self) -> int:
        """Of a picture."""

    @property
    def vocab_size(self) -> int:
        return LEVELS

    @property
    def num_classes(self) -> int:
        return 10

    @property
    def slice_names(self) -> tuple[str, ...]:
        return tuple(f"digit {digit}" for digit in range(10))

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The pixels in the order in which they are read, int64 [pixels]."""
        if self.permutation is None:
            return np.arange(self.pixels)
        return np.random.default_rng(self.permutation).permutation(self.pixels)

    def row(self, image: np.ndarray, label: int) -> Row:
        """The row of a picture, uint8 with `pixels` elements."""
        return label_row(image.ravel()[self.order], label, self.seq_len, label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(PixelSequences):
    """The 8 x 8 digits of scikit-learn; of every digit 80% train, 10% are valid and 10% test.

    Raises (on first use of the data):
        UserError: scikit-learn is not installed.
    """

    seq_len: int = 64

    @property
    def pixels(self) -> int:
        return 64

    @functools.cached_property
    def _splits(self) -> dict[str, tuple[UInt8[np.ndarray, "N 64"], np.ndarray]]:
        """Pictures and labels of every split."""
        images, labels = _load()
        chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
        random = np.random.default_rng(SPLIT_SEED)
        for digit in range(10):
            places = random.permutation(np.flatnonzero(labels == digit))
            held_out = round(HELD_OUT * len(places))
            parts = np.split(places, [len(places) - 2 * held_out, len(places) - held_out])
            for split, part in zip(SPLITS, parts, strict=True):
                chosen[split] += part.tolist()
        return {split: (images[places], labels[places]) for split, places in chosen.items()}

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        return [self.row(image, int(label)) for image, label in zip(*self._splits[split], strict=True)]

    def fingerprint(self) -> dict[str, Any]:
        """The fields, and a hash of the pictures and labels."""
        found = {split: [part.tolist() for part in parts] for split, parts in self._splits.items()}
        return super().fingerprint() | {"sha256": digest(found)}


def _load() -> tuple[UInt8[np.ndarray, "N 64"], np.ndarray]:
    """Pictures with values from 0 to 255, and labels."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise UserError("data: Digits needs the package scikit-learn; pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    return np.rint(images * (LEVELS - 1) / 16).astype(np.uint8), labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class MNIST(Prepared, PixelSequences):
    """MNIST, or another prepared dataset of TFDS with pictures of its size, such as ``"fashion_mnist"``."""

    name: str = "mnist"
    seq_len: int = 784
    splits: tuple[str, str, str] = ("train[:90%]", "train[90%:]", "test")

    @property
    def pixels(self) -> int:
        return 784

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        return Rows(self, self.examples(split, "image", "label"))


@dataclasses.dataclass(frozen=True)
class Rows(Sequence[Row]):
    """Rows of pictures that are read when they are asked for."""

    task: PixelSequences
    examples: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        example = self.examples[index]
        return self.task.row(np.asarray(example["image"]), int(example["label"]))
