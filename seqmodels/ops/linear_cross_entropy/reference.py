"""The definition of `linear_cross_entropy`: all logits at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqmodels.axes import Array, accumulate_dtype


def run(
    hidden: Array,
    embedding: Array,
    bias: Array | None,
    targets: Array,
    *,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    gradient_filter: float | None = None,
    chunk_size: int | None = None,
) -> Array:
    """Loss of every token ``[N]``, from ``hidden [N,D]``, ``embedding [vocab,D]``, ``bias [vocab]``, ``targets [N]``.

    Targets outside the vocabulary give a number without meaning, which the caller replaces. No chunks here,
    and nothing is filtered.
    """
    dtype = accumulate_dtype(hidden, embedding)
    logits = jnp.einsum("nd,vd->nv", hidden, embedding, preferred_element_type=dtype)
    if bias is not None:
        logits = logits + bias[None].astype(dtype)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    lse = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.sum(jnp.where(targets[:, None] == jnp.arange(embedding.shape[0])[None], logits, 0), axis=-1)
    loss = lse - (1 - label_smoothing) * hit + z_loss * lse**2
    return loss - label_smoothing * jnp.mean(logits, axis=-1) if label_smoothing else loss
