"""Named problems of `long_conv`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import cases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """``batch`` sequences of ``length`` tokens with ``channels`` kernels of ``taps`` (by default as many as tokens)."""

    batch: int = 1
    length: int
    channels: int
    taps: int | None = None
    state: bool = True
    documents: int = 0  # packed into a row, 0: no segment_ids
    num_segments: int | None = None

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keys = jax.random.split(key, 4)
        taps = self.taps or self.length
        x = jax.random.normal(keys[0], (self.batch, self.length, self.channels), dtype)
        kernel = jax.random.normal(keys[1], (taps, self.channels), dtype) * taps**-0.5
        options: dict[str, Any] = {}
        if self.documents:
            ids = jax.random.randint(keys[2], x.shape[:2], 0, self.documents + 1, jnp.int32)
            options["segment_ids"] = ids if self.num_segments else jnp.sort(ids, axis=1)
            options["num_segments"] = self.num_segments
        if self.state:
            lead = (self.batch,) if self.num_segments is None else (self.batch, self.num_segments)
            options["state"] = jax.random.normal(keys[3], (*lead, taps - 1, self.channels), jnp.float32)
        return (x, kernel), options

    def flops(self) -> float:
        """Of three real FFTs of twice the length at ``2.5 n log2 n`` each."""
        return 15.0 * self.batch * self.length * self.channels * math.log2(2 * self.length)

    def bytes(self, dtype: Any = jnp.float32) -> float:
        kernel = (self.taps or self.length) * self.channels
        return float(jnp.dtype(dtype).itemsize * (2 * self.batch * self.length * self.channels + kernel))


CASES = (
    Case(name="plain", batch=2, length=37, channels=3),
    Case(name="fft", batch=2, length=150, channels=3, taps=90),
    Case(name="documents", batch=2, length=75, channels=3, taps=70, documents=3),
    Case(name="short_taps", batch=2, length=75, channels=3, taps=11, documents=9),
    Case(name="stateless", batch=2, length=45, channels=3, state=False, documents=2),
    Case(name="segments", batch=2, length=25, channels=3, taps=9, documents=3, num_segments=4),
    Case(name="long_taps", batch=2, length=5, channels=2, taps=9, state=False, documents=2),
    Case(name="one_tap", batch=1, length=9, channels=2, taps=1, documents=2),
    Case(name="training", batch=8, length=1024, channels=256, state=False, large=True),
    Case(name="packed", batch=8, length=1024, channels=256, state=False, documents=6, large=True),
    Case(name="long", length=65_536, channels=64, state=False, large=True),
    Case(name="longest", length=262_144, channels=16, state=False, large=True),
)
