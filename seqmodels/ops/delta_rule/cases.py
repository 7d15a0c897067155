"""Named problems of `delta_rule`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.linear_attention import cases
from seqmodels.ops.linear_attention.cases import CPU, HEADLINE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    """Shape of a delta rule."""

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(q, k, v, beta[, log_decay])``; keys have length one, beta lies in (0, 1)."""
        key, own = jax.random.split(key)
        (q, k, v, *decay), options = super().make(key, dtype)
        beta = jax.nn.sigmoid(jax.random.normal(own, v.shape[:3])).astype(dtype)
        return (q, k, v, beta, *decay), options

    def flops(self) -> float:
        C, K, V = self._chunk(), self.K, self.V
        inside = C * (4 * K + 2 * V) + C * C / 2  # scores, WY solutions, their products, the inverse
        return 2.0 * self.B * self.T * self.H * (inside + K * K + 2 * K * V + K * K * V / C)

    def bytes(self, dtype: Any = jnp.float32) -> float:
        return super().bytes(dtype) + jnp.dtype(dtype).itemsize * self.B * self.T * self.H


CASES = (
    Case(name="plain", B=2, T=97, H=2, K=16, V=24),
    Case(name="scalar", B=2, T=97, H=4, Hk=2, K=16, V=24, decay="scalar"),
    Case(name="vector", B=2, T=97, H=2, K=16, V=24, decay="vector"),
    *(Case(name=f"cpu_{decay}", decay=decay, **CPU) for decay in ("none", "scalar", "vector")),
    *(Case(name=f"gdn_{name}", decay="scalar", **shape) for name, shape in HEADLINE),
)
