"""The feed-forward half of a block."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """``down(silu(gate(x)) * up(x))`` (SwiGLU, arXiv:2002.05202) or ``down(gelu(up(x)))``.

    The hidden width is `hidden`, or follows from `ratio`: ``ratio * dim`` for gelu and two thirds of that for
    SwiGLU (the same number of parameters), rounded down to an integer and then up to a multiple of `multiple_of`.
    """

    ratio: float = 4.0
    hidden: int | None = None
    activation: Literal["swiglu", "gelu"] = "swiglu"
    multiple_of: int = 256

    def __post_init__(self):
        if self.activation not in ("swiglu", "gelu"):
            raise UserError(f"mlp.activation={self.activation!r} is unknown, expected 'swiglu' or 'gelu'")
        if self.ratio <= 0 or self.multiple_of < 1 or (self.hidden is not None and self.hidden < 1):
            raise UserError(
                f"mlp: ratio={self.ratio}, hidden={self.hidden}, multiple_of={self.multiple_of}: all must be positive"
            )

    def width(self, dim: int) -> int:
        """The hidden width for model width `dim`."""
        if self.hidden is not None:
            return self.hidden
        wanted = int(2 * self.ratio * dim / 3) if self.activation == "swiglu" else int(self.ratio * dim)
        return -(-wanted // self.multiple_of) * self.multiple_of

    def make(self, dim: int, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32, name: str | None = None) -> MLP:
        """The module for model width `dim`."""
        return MLP(self, dim, dtype, param_dtype, name=name)

    def flops_per_token(self, dim: int) -> float:
        """Forward FLOPs per token; a multiply-add counts two."""
        return 2.0 * dim * self.width(dim) * (3 if self.activation == "swiglu" else 2)


class MLP(nn.Module):
    """``[...,D] -> [...,D]``; see `MLPConfig`."""

    cfg: MLPConfig
    dim: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        def project(name: str, features: int, source: str, target: str) -> Linear:
            return Linear(features, axes=(source, target), dtype=self.dtype, param_dtype=self.param_dtype, name=name)

        width = self.cfg.width(self.dim)
        up = project("up_proj", width, "embed", "mlp")(x)
        if self.cfg.activation == "swiglu":
            hidden = jax.nn.silu(project("gate_proj", width, "embed", "mlp")(x)) * up
        else:
            hidden = jax.nn.gelu(up, approximate=False)
        return project("down_proj", self.dim, "mlp", "embed")(hidden)
