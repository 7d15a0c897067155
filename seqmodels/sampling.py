"""Choosing the next token from logits: pure functions on ``[..., vocab]`` arrays."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. Filters apply in the order temperature, top-k, top-p."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Keep this many likeliest tokens."""
    top_p: float | None = None
    """Keep the smallest set of likeliest tokens with at least this probability (nucleus, arXiv:1904.09751)."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature} must be at least 0 (0 is greedy); set --temperature")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be at least 1; set --top-k or leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1; set --top-p or leave it out")


GREEDY = SamplingConfig(temperature=0.0)


def keep_top_k(logits: Array, k: int) -> Array:
    """`logits` with all but the `k` largest at ``-inf``; ties with the k-th are kept."""
    k = min(k, logits.shape[-1])
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def keep_top_p(logits: Array, p: float) -> Array:
    """`logits` with all but the smallest set of likeliest tokens of probability at least `p` at ``-inf``.

    The likeliest token always stays; ties with the last one kept stay too.
    """
    ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # what likelier tokens hold
    inside = (before < p).at[..., 0].set(True)
    threshold = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def filter_logits(logits: Array, cfg: SamplingConfig) -> Array:
    """The logits, in float32, of the distribution that `sample` draws from (temperature above 0)."""
    logits = logits.astype(jnp.float32) / cfg.temperature
    if cfg.top_k is not None:
        logits = keep_top_k(logits, cfg.top_k)
    return logits if cfg.top_p is None else keep_top_p(logits, cfg.top_p)


def sample(key: Array, logits: Array, cfg: SamplingConfig) -> Array:
    """Token ids int32 ``[...]`` from ``logits [...,vocab]``; greedy ignores `key`."""
    if cfg.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filter_logits(logits, cfg), axis=-1).astype(jnp.int32)
