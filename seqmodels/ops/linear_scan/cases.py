"""Named problems of `linear_scan`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import cases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """``batch`` sequences of ``length`` tokens and ``channels`` independent recurrences."""

    batch: int = 1
    length: int
    channels: int
    is_complex: bool = False
    documents: int = 0  # packed into a row, 0: no segment_ids
    num_segments: int | None = None
    chunk_size: int | None = None

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keys = jax.random.split(key, 5)
        shape = (self.batch, self.length, self.channels)
        a = jax.random.uniform(keys[0], shape, jnp.float32, 0.5, 1.0)
        b = jax.random.normal(keys[1], shape, dtype)
        options: dict[str, Any] = {"chunk_size": self.chunk_size}
        if self.is_complex:
            a = a * jnp.exp(1j * jax.random.uniform(keys[2], shape, jnp.float32, 0.0, 3.0))
        if self.documents:
            ids = jax.random.randint(keys[3], shape[:2], 0, self.documents + 1, jnp.int32)
            options["segment_ids"] = ids if self.num_segments else jnp.sort(ids, axis=1)
            options["num_segments"] = self.num_segments
        lead = (self.batch,) if self.num_segments is None else (self.batch, self.num_segments)
        state = jax.random.normal(keys[4], (*lead, self.channels), jnp.float32)
        options["state"] = state.astype(a.dtype)
        return (a, b), options

    def flops(self) -> float:
        return (8.0 if self.is_complex else 2.0) * self.batch * self.length * self.channels

    def bytes(self, dtype: Any = jnp.float32) -> float:
        size = jnp.dtype(dtype).itemsize
        a, h = (8, 8) if self.is_complex else (4, size)
        return float(self.batch * self.length * self.channels * (a + size + h))


CASES = (
    Case(name="real", batch=2, length=97, channels=12),
    Case(name="complex", batch=2, length=33, channels=6, is_complex=True),
    Case(name="documents", batch=2, length=61, channels=5, documents=4, chunk_size=16),
    Case(name="segments", batch=2, length=61, channels=5, documents=4, num_segments=5),
    Case(name="wide", batch=8, length=512, channels=1024, large=True),
    Case(name="long", length=65_536, channels=64, large=True),
    Case(name="long_complex", length=16_384, channels=64, is_complex=True, large=True),
)
