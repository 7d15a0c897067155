"""The sequence classifier: tokens or continuous features in, one label per sequence out."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, Num

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.param import param
from seqmodels.models.lm import Backbone, BackboneConfig


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(BackboneConfig):
    """A stack of blocks, pooled over the real tokens of a sequence."""

    num_classes: int = 2
    """Number of labels."""
    vocab_size: int | None = None
    """Rows of the embedding for token input; ``None`` means continuous input ``[B,T,features]``."""
    pool: Literal["mean", "last"] = "mean"
    """How positions become one vector: their mean, or the last real one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1:
            raise UserError(f"model.num_classes={self.num_classes} must be at least 1; set --model.num-classes")

    def make(self) -> SequenceClassifier:
        """The module; allocates nothing."""
        return SequenceClassifier(self)


class SequenceClassifier(nn.Module):
    """``apply(params, inputs, segment_ids) -> (logits float32 [B,classes], aux)``; see `ClassifierConfig`."""

    cfg: ClassifierConfig

    @nn.compact
    def __call__(
        self,
        inputs: Int[Array, "B T"] | Num[Array, "B T features"],
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> tuple[Float32[Array, "B classes"], dict[str, Any]]:
        """Logits and auxiliary outputs of tokens or of continuous features; in `segment_ids` 0 is padding."""
        cfg = self.cfg
        if cfg.vocab_size is None:
            x = Linear(cfg.dim, axes=(None, "embed"), use_bias=True, dtype=jnp.dtype(cfg.dtype), name="encoder")(inputs)
        else:
            init = nn.initializers.normal(cfg.init_std)
            embedding = param(self, "embedding", init, (cfg.vocab_size, cfg.dim), ("vocab", "embed"))
            x = jnp.take(embedding, inputs, axis=0).astype(cfg.dtype)
        x, _, aux = Backbone(cfg, name="backbone")(x, None, segment_ids)
        pooled = pool(x, segment_ids, cfg.pool)
        logits = Linear(cfg.num_classes, axes=("embed", None), use_bias=True, name="classifier")(pooled)
        return logits.astype(jnp.float32), aux


def pool(x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"] | None, how: str) -> Float32[Array, "B D"]:
    """One vector per sequence, over the positions that are not padding (zeros if all are)."""
    x = x.astype(jnp.float32)
    real = jnp.ones(x.shape[:2], bool) if segment_ids is None else segment_ids != 0
    if how == "last":
        time = jnp.arange(x.shape[1])
        newest = jnp.max(jnp.where(real, time, -1), axis=1)
        weight = (time == newest[:, None]).astype(jnp.float32)
    else:
        weight = real / jnp.maximum(real.sum(axis=1, keepdims=True), 1)
    return jnp.einsum("bt,btd->bd", weight, x)
