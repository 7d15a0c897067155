"""Named problems of `linear_cross_entropy`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import cases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """``tokens`` hidden states of width ``dim`` against a vocabulary of ``vocab``."""

    tokens: int
    dim: int
    vocab: int
    bias: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    ignored: float = 0.0  # share of tokens without loss
    chunk_size: int | None = None

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keys = jax.random.split(key, 5)
        hidden = jax.random.normal(keys[0], (self.tokens, self.dim), dtype)
        embedding = jax.random.normal(keys[1], (self.vocab, self.dim), dtype) * self.dim**-0.5
        targets = jax.random.randint(keys[2], (self.tokens,), 0, self.vocab)
        targets = jnp.where(jax.random.uniform(keys[3], (self.tokens,)) < self.ignored, -100, targets)
        options = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss, "softcap": self.softcap}
        bias = jax.random.normal(keys[4], (self.vocab,), dtype) if self.bias else None
        return (hidden, embedding, targets), {"bias": bias, "chunk_size": self.chunk_size, **options}

    def flops(self) -> float:
        return 2.0 * self.tokens * self.dim * self.vocab

    def bytes(self, dtype: Any = jnp.float32) -> float:
        size = jnp.dtype(dtype).itemsize
        return size * (self.tokens * self.dim + self.vocab * (self.dim + self.bias)) + 4.0 * self.tokens + 4.0


CASES = (
    Case(name="bytes", tokens=64, dim=32, vocab=264),
    Case(name="ragged", tokens=77, dim=24, vocab=131, bias=True, ignored=0.2, chunk_size=40),
    Case(name="smooth", tokens=50, dim=16, vocab=96, label_smoothing=0.1, ignored=0.2, chunk_size=32),
    Case(name="softcap", tokens=50, dim=16, vocab=131, bias=True, softcap=5.0, z_loss=0.01, chunk_size=32),
    Case(name="tiny_chunk", tokens=13, dim=8, vocab=29, bias=True, label_smoothing=0.2, softcap=3.0, chunk_size=7),
    Case(name="quickstart", tokens=2048, dim=128, vocab=264, large=True),
    Case(name="vocab_32k", tokens=2048, dim=256, vocab=32_000, large=True),
    Case(name="vocab_50k_ragged", tokens=1024, dim=256, vocab=50_257, large=True),
    Case(name="vocab_256k", tokens=8192, dim=2304, vocab=256_000, large=True),
)
