"""Named problems of `linear_attention`."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import cases, chunking

Decay = Literal["none", "fixed", "scalar", "vector"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """Shape of a recurrence with a ``[K,V]`` state per head."""

    B: int
    T: int
    H: int
    K: int
    V: int
    Hk: int | None = None  # key heads, H by default
    decay: Decay = "none"

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(q, k, v[, log_decay])``; keys have length one and decays lie mostly between 0.5 and 1."""
        keys = jax.random.split(key, 4)
        Hk = self.Hk or self.H
        q = jax.random.normal(keys[0], (self.B, self.T, Hk, self.K), dtype)
        k = jax.random.normal(keys[1], (self.B, self.T, Hk, self.K), dtype)
        k = k / jnp.linalg.norm(k.astype(jnp.float32), axis=-1, keepdims=True).astype(dtype)
        v = jax.random.normal(keys[2], (self.B, self.T, self.H, self.V), dtype)
        if self.decay == "none":
            return (q, k, v), {}
        if self.decay == "fixed":
            return (q, k, v, jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(self.H))))), {}
        shape = (self.B, self.T, self.H) + ((self.K,) if self.decay == "vector" else ())
        return (q, k, v, jax.nn.log_sigmoid(2 + jax.random.normal(keys[3], shape))), {}

    def flops(self) -> float:
        return 2.0 * self.B * self.T * self.H * (self._chunk() * (self.K + self.V) + 2 * self.K * self.V)

    def bytes(self, dtype: Any = jnp.float32) -> float:
        size = jnp.dtype(dtype).itemsize
        tokens = self.B * self.T
        decay = {"none": 0, "fixed": 0, "scalar": self.H, "vector": self.H * self.K}[self.decay]
        return tokens * (size * (2 * (self.Hk or self.H) * self.K + 2 * self.H * self.V) + 4 * decay)

    def _chunk(self) -> int:
        return chunking.chunk_length(None, self.T, max(self.K, self.V))


HEADLINE = tuple(  # B, T, H, D of the usual GPU comparison, and a long sequence
    (f"b{B}_t{T}_h{H}_d{D}", {"B": B, "T": T, "H": H, "K": D, "V": D, "large": True})
    for B, T, H, D in (
        (1, 8192, 96, 128),
        (2, 16384, 16, 128),
        (4, 2048, 16, 128),
        (4, 4096, 64, 128),
        (8, 2048, 32, 256),
        (8, 1024, 8, 64),
        (1, 65536, 16, 128),
    )
)
CPU = {"B": 1, "T": 4096, "H": 4, "K": 64, "V": 64, "large": True}

CASES = (
    Case(name="none", B=2, T=97, H=2, K=16, V=24),
    Case(name="fixed", B=2, T=97, H=2, K=16, V=24, decay="fixed"),
    Case(name="scalar", B=2, T=97, H=4, Hk=2, K=16, V=24, decay="scalar"),
    Case(name="vector", B=2, T=97, H=2, K=16, V=24, decay="vector"),
    *(Case(name=f"cpu_{decay}", decay=decay, **CPU) for decay in ("none", "fixed", "scalar", "vector")),
    *(Case(name=f"retention_{name}", decay="fixed", **shape) for name, shape in HEADLINE),
    *(Case(name=f"gla_{name}", decay="vector", **shape) for name, shape in HEADLINE),
)
