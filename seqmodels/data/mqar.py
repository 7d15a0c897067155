"""Multi-query associative recall (MQAR), the task of "Zoology: Measuring and Improving Recall in Efficient Language
Models" (Arora et al., 2023, arXiv:2312.04927), with the placement of queries of its public code.

A row begins with ``n`` pairs *key value*, keys and values each drawn without replacement from their half of the
vocabulary. In what follows every key stands once more, at an even distance from the end of the pairs, and there the
model must output its value. The slot of a query among the ``(T - 2n) / 2`` slots is drawn, without replacement, from
the power law ``p(slot) ~ (slot + 1) ** (power_a - 1)``: most queries come soon, few late; ``power_a = 1`` is uniform.
All other positions hold random tokens (or filler) that are never asked.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from seqmodels.data.base import Row
from seqmodels.data.synthetic import SyntheticTask, answer_row, require_mix
from seqmodels.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MQAR(SyntheticTask):
    """Multi-query associative recall; slices are the numbers of pairs.

    Token 0 is filler, ``1 .. vocab/2 - 1`` are keys, ``vocab/2 .. vocab - 1`` values; with more `filler_tokens` these
    come first, and half of the others are keys. The paper trains with ``vocab_size=8192`` and from 4 pairs in 64 tokens
    to 64 pairs in 512.
    """

    seq_len: int = 64
    vocab_size: int = 8192  # type: ignore[override]  # a field
    num_pairs: tuple[int, ...] = (4,)
    """Each row draws one of these numbers of pairs."""
    power_a: float = 0.01
    """Exponent of the power law of the queries' places."""
    random_non_queries: bool = True
    """Fill the places without a query with random tokens, keys and values among them, instead of filler."""
    filler_tokens: int = 1
    """Tokens that are neither keys nor values; each place of filler draws one of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_mix("num_pairs", self.num_pairs)
        most = max(self.num_pairs)
        if self.seq_len % 2 or self.seq_len < 4 * most:
            raise UserError(
                f"seq_len: {self.seq_len} tokens for {most} pairs; "
                f"use an even number of at least {4 * most} or fewer num_pairs"
            )
        if self.filler_tokens < 1:
            raise UserError(f"filler_tokens: {self.filler_tokens}; use 1 or more")
        keys = self._first_value - self.filler_tokens
        if keys < most:
            raise UserError(
                f"vocab_size: {self.vocab_size} has {max(0, keys)} keys for {most} pairs; "
                f"use at least {2 * most + self.filler_tokens + 1} or fewer num_pairs"
            )
        if self.power_a <= 0:
            raise UserError(f"power_a: {self.power_a}; use a number above 0 (1 is uniform)")

    @property
    def _first_value(self) -> int:
        return self.filler_tokens - 1 + (self.vocab_size - self.filler_tokens + 1) // 2

    @property
    def slice_names(self) -> tuple[str, ...]:
        return tuple(f"{pairs} pairs" for pairs in self.num_pairs)

    def example(self, random: np.random.Generator) -> Row:
        choice = int(random.integers(len(self.num_pairs)))
        pairs = self.num_pairs[choice]
        first = self._first_value
        keys = self.filler_tokens + random.choice(first - self.filler_tokens, pairs, replace=False)
        values = first + random.choice(self.vocab_size - first, pairs, replace=False)
        slots = (self.seq_len - 2 * pairs) // 2
        weights = np.arange(1, slots + 1) ** (self.power_a - 1)
        asked = 2 * pairs + 2 * random.choice(slots, pairs, replace=False, p=weights / weights.sum())
        kinds = self.vocab_size if self.random_non_queries else self.filler_tokens
        tokens = random.integers(kinds, size=self.seq_len)
        tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], tokens[asked] = keys, values, keys
        return answer_row(tokens, values, asked, choice)
