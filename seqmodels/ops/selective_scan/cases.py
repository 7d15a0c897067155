"""Named problems of `selective_scan`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import cases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """Shape of a selective scan; A, D and the step sizes lie where Mamba's initialisation puts them."""

    B: int
    T: int
    D: int
    N: int
    G: int | None = None  # groups, None: B and C have no group axis
    gated: bool = True  # with D, z and delta_bias
    documents: int = 0  # ids per row, 0: no segment_ids
    num_segments: int | None = None

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(x, dt, A, B, C[, D, z])``."""
        keys = jax.random.split(key, 8)
        normal = lambda i, *shape: jax.random.normal(keys[i], (self.B, self.T, *shape), dtype)  # noqa: E731
        rows = (self.N,) if self.G is None else (self.G, self.N)
        A = -jnp.tile(jnp.arange(1.0, self.N + 1), (self.D, 1))
        args = (normal(0, self.D), normal(1, self.D), A, normal(2, *rows), normal(3, *rows))
        bias = jnp.log(jnp.expm1(10.0 ** jax.random.uniform(keys[4], (self.D,), jnp.float32, -3.0, -1.0)))
        options: dict[str, Any] = {"softplus": True, "delta_bias": bias}
        if self.gated:
            args = (*args, jnp.ones(self.D), normal(5, self.D))
        if self.documents:
            ids = jax.random.randint(keys[6], (self.B, self.T), 0, self.documents + 1, jnp.int32)
            options["segment_ids"] = ids if self.num_segments else jnp.sort(ids, axis=1)
            options["num_segments"] = self.num_segments
        lead = (self.B,) if self.num_segments is None else (self.B, self.num_segments)
        options["state"] = jax.random.normal(keys[7], (*lead, self.D, self.N), jnp.float32)
        return args, options

    def flops(self) -> float:
        return 7.0 * self.B * self.T * self.D * self.N

    def bytes(self, dtype: Any = jnp.float32) -> float:
        columns = self.D * (4 if self.gated else 3) + 2 * (self.G or 1) * self.N
        return float(jnp.dtype(dtype).itemsize * self.B * self.T * columns)


CASES = (
    Case(name="plain", B=2, T=97, D=12, N=4, gated=False),
    Case(name="gated", B=2, T=97, D=12, N=5),
    Case(name="grouped", B=2, T=61, D=12, N=4, G=3),
    Case(name="documents", B=2, T=61, D=6, N=4, documents=4),
    Case(name="segments", B=2, T=61, D=6, N=4, documents=4, num_segments=5),
    Case(name="cpu_130m", B=1, T=2048, D=1536, N=16, large=True),
    Case(name="cpu_long", B=1, T=65_536, D=32, N=16, large=True),
    Case(name="b8_t2048_d1536", B=8, T=2048, D=1536, N=16, large=True),
    Case(name="b8_t4096_d4096", B=8, T=4096, D=4096, N=16, large=True),
)
