"""Induction heads: find what followed the last time.

The term and mechanism are from "In-context Learning and Induction Heads" (Olsson et al., 2022, arXiv:2209.11895); the
task with one special token is that of H3 (Fu et al., 2022, arXiv:2212.14052) as "Mamba" (Gu and Dao, 2023,
arXiv:2312.00752) uses it: 16 token types, 256 tokens in training and up to 2**20 in tests.

A row is random tokens with the special token at one random place. The special token stands again at the end, and there
the model must output the token that followed its first occurrence.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from seqmodels.data.base import Row
from seqmodels.data.synthetic import SyntheticTask, answer_row
from seqmodels.errors import UserError

QUARTERS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class InductionHeads(SyntheticTask):
    """Recall the token after the special token; slices are the quarter of the row in which it stood.

    The special token is ``vocab_size - 1``, all others are ordinary.
    """

    seq_len: int = 256
    vocab_size: int = 16  # type: ignore[override]  # a field

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seq_len < 3:
            raise UserError(f"seq_len: {self.seq_len} tokens; use at least 3: special token, answer, special token")
        if self.vocab_size < 3:
            raise UserError(f"vocab_size: {self.vocab_size}; use at least 3: two ordinary tokens and the special one")

    @property
    def slice_names(self) -> tuple[str, ...]:
        return tuple(f"quarter {quarter} of the row" for quarter in range(1, QUARTERS + 1))

    def example(self, random: np.random.Generator) -> Row:
        special = self.vocab_size - 1
        tokens = random.integers(special, size=self.seq_len)
        place = int(random.integers(self.seq_len - 2))
        tokens[[place, -1]] = special
        end = np.array([self.seq_len - 1])
        return answer_row(tokens, tokens[[place + 1]], end, place * QUARTERS // (self.seq_len - 2))
