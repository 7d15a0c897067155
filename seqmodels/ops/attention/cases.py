"""Named problems of `attention`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import cases
from seqmodels.ops.linear_attention.cases import HEADLINE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """``batch`` sequences of ``length`` tokens; ``cache`` keys in the shuffled slots of a cache, some of them empty."""

    batch: int = 1
    length: int
    heads: int = 2
    kv_heads: int = 2
    size: int
    value_size: int
    causal: bool = True
    window: int | None = None
    sink: bool = False
    documents: int = 0  # packed into a row with padding between, 0: no segment_ids
    cache: int = 0  # number of slots, 0: the keys are the queries' tokens
    chunk_size: int | None = None

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keys = jax.random.split(key, 6)
        others = self.cache or self.length
        q = jax.random.normal(keys[0], (self.batch, self.length, self.heads, self.size), dtype)
        k = jax.random.normal(keys[1], (self.batch, others, self.kv_heads, self.size), dtype)
        v = jax.random.normal(keys[2], (self.batch, others, self.kv_heads, self.value_size), dtype)
        options: dict[str, Any] = {"causal": self.causal, "window": self.window, "chunk_size": self.chunk_size}
        if self.sink:
            options["sink"] = jax.random.normal(keys[3], (self.heads,), jnp.float32)
        if self.documents:
            ids = jnp.sort(jax.random.randint(keys[4], q.shape[:2], 1, self.documents + 1, jnp.int32), axis=1)
            options["segment_ids"] = jnp.where(jax.random.uniform(keys[5], ids.shape) < 0.2, 0, ids)
        if self.cache:
            slots = jax.random.permutation(keys[4], jnp.arange(-2, self.cache - 2, dtype=jnp.int32))
            options["kv_positions"] = jnp.broadcast_to(slots, k.shape[:2])
            options["positions"] = jnp.arange(self.cache - self.length, self.cache, dtype=jnp.int32)
        return (q, k, v), options

    def flops(self) -> float:
        reach = min(self.window or self.length, self.length)
        pairs = self.length * reach - (reach * (reach - 1) / 2 if self.causal else 0)
        if self.cache:
            pairs = self.length * self.cache
        return 2.0 * self.batch * self.heads * pairs * (self.size + self.value_size)

    def bytes(self, dtype: Any = jnp.float32) -> float:
        queries = self.length * self.heads * (self.size + self.value_size)
        keys = (self.cache or self.length) * self.kv_heads * (self.size + self.value_size)
        return float(self.batch * (queries + keys) * jnp.dtype(dtype).itemsize)


CASES = (
    Case(name="causal", batch=2, length=45, size=8, value_size=6),
    Case(name="grouped", length=45, heads=4, size=8, value_size=8, chunk_size=16),
    Case(name="window", batch=2, length=61, size=8, value_size=8, window=11, chunk_size=16),
    Case(name="bidirectional", length=33, size=8, value_size=8, causal=False, chunk_size=16),
    Case(name="bidirectional_window", length=61, size=8, value_size=8, causal=False, window=5, chunk_size=16),
    Case(name="sink", length=45, heads=4, size=8, value_size=8, sink=True, chunk_size=16),
    Case(name="documents", batch=2, length=61, size=8, value_size=8, documents=4, chunk_size=16),
    Case(name="packed_window", batch=2, length=61, size=8, value_size=8, documents=3, window=7, chunk_size=8),
    Case(name="cache", batch=2, length=5, heads=4, size=8, value_size=6, cache=29, sink=True, chunk_size=8),
    Case(name="cache_window", batch=2, length=3, size=8, value_size=8, cache=29, window=9),
    Case(name="training", batch=8, length=512, heads=8, kv_heads=8, size=64, value_size=64, large=True),
    Case(name="band", length=8192, heads=4, size=64, value_size=64, window=512, large=True),
    *(
        Case(
            name=name,
            batch=x["B"],
            length=x["T"],
            heads=x["H"],
            kv_heads=x["H"],
            size=x["K"],
            value_size=x["V"],
            large=True,
        )
        for name, x in HEADLINE
    ),
    Case(name="decode", batch=8, length=1, heads=8, size=64, value_size=64, cache=4096, large=True),
)
