"""Named problems of `short_conv`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import cases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """``batch`` sequences of ``length`` tokens with ``channels`` filters of ``width`` taps."""

    batch: int = 1
    length: int
    channels: int
    width: int = 4
    bias: bool = False
    activation: str | None = "silu"
    documents: int = 0  # packed into a row, 0: no segment_ids
    num_segments: int | None = None
    padding: bool = True  # some tokens are padding

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keys = jax.random.split(key, 5)
        x = jax.random.normal(keys[0], (self.batch, self.length, self.channels), dtype)
        weight = jax.random.normal(keys[1], (self.width, self.channels), dtype) * self.width**-0.5
        bias = jax.random.normal(keys[2], (self.channels,), dtype) if self.bias else None
        options: dict[str, Any] = {"activation": self.activation}
        if self.documents:
            ids = jax.random.randint(keys[3], x.shape[:2], 0 if self.padding else 1, self.documents + 1, jnp.int32)
            options["segment_ids"] = ids if self.num_segments else jnp.sort(ids, axis=1)
            options["num_segments"] = self.num_segments
        lead = (self.batch,) if self.num_segments is None else (self.batch, self.num_segments)
        options["state"] = jax.random.normal(keys[4], (*lead, self.width - 1, self.channels), jnp.float32)
        return (x, weight, bias), options

    def flops(self) -> float:
        return 2.0 * self.batch * self.length * self.channels * self.width

    def bytes(self, dtype: Any = jnp.float32) -> float:
        return 2.0 * self.batch * self.length * self.channels * jnp.dtype(dtype).itemsize


CASES = (
    Case(name="plain", batch=2, length=33, channels=6, width=3, activation=None),
    Case(name="silu_bias", batch=2, length=21, channels=5, bias=True),
    Case(name="documents", batch=2, length=37, channels=5, bias=True, documents=9),
    Case(name="no_padding", batch=2, length=37, channels=5, bias=True, documents=9, padding=False),
    Case(name="segments", batch=2, length=37, channels=5, bias=True, documents=4, num_segments=5),
    Case(name="short", batch=2, length=2, channels=3, documents=2, num_segments=3),
    Case(name="width_1", batch=1, length=9, channels=3, width=1, documents=2),
    Case(name="training", batch=8, length=512, channels=1024, large=True),
    Case(name="packed", batch=8, length=512, channels=1024, documents=6, padding=False, large=True),
    Case(name="memories", batch=8, length=512, channels=1024, documents=4, num_segments=4, large=True),
)
