"""Cross entropy of a linear head, from hidden states and the embedding: the [tokens, vocab] logits are never held."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from seqmodels.axes import Array
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.linear_cross_entropy import chunked, pallas_tpu, reference
from seqmodels.ops.partition import Dims

IMPLEMENTATIONS = {
    "pallas_tpu": Implementation(pallas_tpu.run, pallas_tpu.supports),
    "chunked": Implementation(chunked.run),
    "reference": Implementation(reference.run),
}


def linear_cross_entropy(
    hidden: Float[Array, "*tokens D"],
    embedding: Float[Array, "vocab D"],
    targets: Int[Array, "*tokens"],
    *,
    bias: Float[Array, "vocab"] | None = None,
    weights: Shaped[Array, "*tokens"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    gradient_filter: float | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> Float[Array, ""] | Float[Array, "*tokens"]:
    """Next-token loss of the logits ``hidden @ embedding.T + bias``.

    With logits ``z`` (soft-capped to ``c * tanh(z / c)``), ``lse = logsumexp(z)`` and smoothing ``e``, the loss of a
    token is ``lse - (1 - e) * z[target] - e * mean(z) + z_loss * lse**2``.

    The chunked form walks over blocks of the vocabulary (and of the tokens, when they are many) with an online
    logsumexp, keeps one number per token, and computes the logits again in the backward pass, as in Cut Cross-Entropy
    (arXiv 2411.09009); the TPU kernel does so tile by tile in vector memory. A problem that fits into one block of the
    chunked form keeps its logits and costs what the plain form costs. Logits, sums and the loss are float32 (float64
    for float64 inputs); gradients have their inputs' dtypes. On a TPU bfloat16 hidden states make bfloat16 products.

    Args:
      hidden: ``[..., D]``, floating point.
      embedding: ``[vocab, D]``, floating point.
      targets: ``[...]`` integers in ``0..vocab-1``, or `ignore_index`. Any other value gives a NaN loss.
      bias: ``[vocab]`` or ``None``. -inf takes an entry out of the vocabulary (label smoothing then gives inf).
      weights: ``[...]`` weight of every token's loss (a loss mask); 0 ignores the token. ``None`` means ones.
      label_smoothing: share of the target that is spread evenly over the vocabulary, in [0, 1).
      z_loss: weight of ``lse**2``, which keeps the logits' normaliser near one.
      softcap: bound ``c`` of the logits, or ``None``.
      ignore_index: the target of tokens without loss.
      reduction: ``"mean"`` (sum of weighted losses over the sum of weights; 0 when everything is ignored), ``"sum"``,
        or ``"none"`` (every token's weighted loss, 0 where ignored: what an evaluation by position or slice needs).
      gradient_filter: permission to leave out of the gradient whole tiles of logits in which every derivative of a
        token's loss is smaller than this (before weights and the cap's derivative); ``2**-12`` is the paper's for
        bfloat16. ``None`` leaves nothing out, and so do all implementations but the TPU kernel.
      impl: ``"auto"``, ``"pallas_tpu"``, ``"chunked"`` or ``"reference"``.
      chunk_size: vocabulary entries per block; ``None`` chooses.

    Returns:
      A scalar, or ``[...]`` for ``reduction="none"``.

    Raises:
      ValueError: a shape, dtype or option is not as above.
    """
    _check(hidden, embedding, targets, bias, weights)
    _check_options(label_smoothing, z_loss, softcap, reduction, gradient_filter, chunk_size)
    targets = targets.astype(jnp.int32)
    flat = dispatch(
        "linear_cross_entropy",
        impl,
        IMPLEMENTATIONS,
        hidden.reshape(math.prod(targets.shape), hidden.shape[-1]),
        embedding,
        bias,
        targets.reshape(-1),
        label_smoothing=float(label_smoothing),
        z_loss=float(z_loss),
        softcap=softcap,
        gradient_filter=gradient_filter,
        chunk_size=chunk_size,
        dims=Dims(("B embed", "vocab embed", "vocab", "B"), "B"),
    )
    loss = flat.reshape(targets.shape)
    weights = jnp.ones(targets.shape, loss.dtype) if weights is None else weights.astype(loss.dtype)
    weights = jnp.where(targets == ignore_index, 0.0, weights)
    known = (targets >= 0) & (targets < embedding.shape[0])
    loss = jnp.where(weights == 0, 0.0, weights * jnp.where(known, loss, jnp.nan))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return jnp.sum(loss)
    total = jnp.sum(weights)
    return jnp.sum(loss) / jnp.where(total == 0, 1.0, total)


def _check(hidden: Array, embedding: Array, targets: Array, bias: Array | None, weights: Array | None) -> None:
    if embedding.ndim != 2 or embedding.shape[0] == 0:
        raise ValueError(f"embedding has shape {embedding.shape}, expected [vocab, D]; pass the head as [vocab, D]")
    vocab, dim = embedding.shape
    if hidden.ndim == 0 or hidden.shape[-1] != dim:
        raise ValueError(f"hidden has shape {hidden.shape}, expected [..., {dim}]: the last axis of embedding")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets has shape {targets.shape}, expected {hidden.shape[:-1]}: hidden without its last axis"
        )
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias has shape {bias.shape}, expected ({vocab},): one number per row of embedding")
    if weights is not None and weights.shape != targets.shape:
        raise ValueError(f"weights has shape {weights.shape}, expected {targets.shape}: one number per target")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets has dtype {targets.dtype}, expected integers; cast with .astype(jnp.int32)")
    for name, array in (("hidden", hidden), ("embedding", embedding), ("bias", bias)):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {array.dtype}, expected a floating-point dtype; cast with .astype")


def _check_options(
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    reduction: str,
    gradient_filter: float | None,
    chunk_size: int | None,
) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} is out of range, expected 0 <= label_smoothing < 1")
    if z_loss < 0:
        raise ValueError(f"z_loss={z_loss} is negative, expected a weight >= 0")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap={softcap} is not positive, expected a bound > 0; use None for no cap")
    if gradient_filter is not None and not 0 < gradient_filter < 1:
        raise ValueError(f"gradient_filter={gradient_filter} is out of range, expected 0 < threshold < 1 or None")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r} is unknown, expected 'mean', 'sum' or 'none'")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is not positive, expected vocabulary entries per block >= 1")
