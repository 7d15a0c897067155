"""Named problems of `linear_ssm`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import cases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """``B`` sequences of ``T`` tokens in ``D`` channels with ``N`` states each."""

    B: int = 1
    T: int
    D: int
    N: int
    dense: bool = False
    is_complex: bool = True  # of a diagonal
    documents: int = 0  # packed into a row, 0: no segment_ids
    chunk_size: int | None = None

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keys = jax.random.split(key, 9)
        normal = lambda i, *shape: jax.random.normal(keys[i], shape, jnp.float32)  # noqa: E731
        complex_ = self.is_complex and not self.dense
        vector = lambda i: jax.lax.complex(normal(i, self.D, self.N), normal(i + 1, self.D, self.N))  # noqa: E731
        b, c, state = vector(0), vector(2), jax.lax.complex(*normal(4, 2, self.B, self.D, self.N))
        angle = jax.random.uniform(keys[5], (self.D, self.N), jnp.float32, 0, 3)
        a = jax.random.uniform(keys[6], (self.D, self.N), jnp.float32, 0.7, 1.0) * jnp.exp(1j * angle)
        if self.dense:
            square = normal(7, self.D, self.N, self.N)
            a = 0.98 * square / jnp.linalg.norm(square, ord="fro", axis=(1, 2), keepdims=True) + 0.0j
        if not complex_:
            a, b, c, state = a.real, b.real, c.real, state.real
        options: dict[str, Any] = {"state": state, "chunk_size": self.chunk_size}
        if self.documents:
            ids = jax.random.randint(keys[8], (self.B, self.T), 0, self.documents + 1, jnp.int32)
            options["segment_ids"] = jnp.sort(ids, axis=1)
        return (normal(8, self.B, self.T, self.D).astype(dtype), a, b, c), options

    def flops(self) -> float:
        """Of the convolution inside chunks and the two products with the state."""
        chunk, width = self.chunk_size or 64, self.N * (2 if self.is_complex and not self.dense else 1)
        matrix = 2.0 * self.N**2 / chunk if self.dense else 0.0
        return self.B * self.T * self.D * (2.0 * chunk + 4.0 * width + matrix)

    def bytes(self, dtype: Any = jnp.float32) -> float:
        return 2.0 * self.B * self.T * self.D * jnp.dtype(dtype).itemsize


CASES = (
    Case(name="complex", B=2, T=37, D=3, N=4, chunk_size=8),
    Case(name="real", B=2, T=37, D=3, N=4, is_complex=False, chunk_size=8),
    Case(name="dense", B=2, T=37, D=3, N=4, dense=True, chunk_size=8),
    Case(name="documents", B=2, T=61, D=3, N=4, documents=7, chunk_size=16),
    Case(name="dense_documents", B=2, T=61, D=3, N=4, dense=True, documents=4, chunk_size=16),
    Case(name="one_chunk", B=2, T=20, D=3, N=4, documents=3),
    Case(name="s4d", B=8, T=1024, D=256, N=32, large=True),
    Case(name="s4", B=8, T=1024, D=256, N=64, dense=True, large=True),
    Case(name="packed", B=8, T=1024, D=256, N=32, documents=6, large=True),
    Case(name="long", T=65_536, D=64, N=32, large=True),
)
