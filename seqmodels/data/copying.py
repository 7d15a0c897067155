"""Copying, and selective copying.

A row has a body, then as many markers as there are data tokens; at the markers the model must output the data tokens in
order. The body holds data tokens and noise (token 0).

* `Copying`: the data tokens open the body, noise follows; the lag is constant, so a fixed convolution solves it. The
  task of "Unitary Evolution Recurrent Neural Networks" (Arjovsky et al., 2016, arXiv:1511.06464).
* `SelectiveCopying`: the data tokens stand at random places of the body, so the model must choose by content. The
  "denoise" task of "Gated Orthogonal Recurrent Units" (Jing et al., 2017, arXiv:1706.02761) as "Mamba" (Gu and Dao,
  2023, arXiv:2312.00752) uses it: 16 data tokens, 16 token types, 4096 tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from seqmodels.data.base import Row
from seqmodels.data.synthetic import SyntheticTask, answer_row, require_mix
from seqmodels.errors import UserError

NOISE = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copying(SyntheticTask):
    """Repeat the tokens at the beginning of the row; slices are the numbers of data tokens.

    Token 0 is noise, ``vocab_size - 1`` the marker, what lies between are data.
    """

    seq_len: int = 256
    """Body and markers together."""
    vocab_size: int = 16  # type: ignore[override]  # a field
    num_tokens: tuple[int, ...] = (16,)
    """Each row draws one of these numbers of data tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_mix("num_tokens", self.num_tokens)
        if self.vocab_size < 4:
            raise UserError(f"vocab_size: {self.vocab_size}; use at least 4: noise, marker and two data tokens")
        if self.seq_len < 2 * max(self.num_tokens):
            raise UserError(
                f"seq_len: {self.seq_len} tokens cannot hold {max(self.num_tokens)} data tokens and as many markers; "
                f"use at least {2 * max(self.num_tokens)} or fewer num_tokens"
            )

    @property
    def slice_names(self) -> tuple[str, ...]:
        return tuple(f"{count} tokens" for count in self.num_tokens)

    def places(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Where the data tokens stand in the body, ascending [count]."""
        return np.arange(count)

    def example(self, random: np.random.Generator) -> Row:
        choice = int(random.integers(len(self.num_tokens)))
        count = self.num_tokens[choice]
        data = random.integers(1, self.vocab_size - 1, size=count)
        tokens = np.full(self.seq_len, NOISE)
        tokens[self.places(random, count)] = data
        asked = np.arange(self.seq_len - count, self.seq_len)
        tokens[asked] = self.vocab_size - 1
        return answer_row(tokens, data, asked, choice)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Copying):
    """Repeat the data tokens that are scattered among noise."""

    def places(self, random: np.random.Generator, count: int) -> np.ndarray:
        return np.sort(random.choice(self.seq_len - count, count, replace=False))
