"""The sequence classifier: tokens or continuous features in, one label per sequence out.

It has the interface that training and evaluation need of a model (see `models.lm.Readout`): hidden states, one per
sequence instead of one per position, a read-out, and what a batch asks.
"""

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
from seqmodels.models.block import BlockConfig
from seqmodels.models.lm import Backbone, BackboneConfig, Readout


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(BackboneConfig):
    """A stack of blocks, pooled over the real tokens of a sequence. Mixers may read the future."""

    num_classes: int = 2
    """Number of labels."""
    vocab_size: int | None = None
    """Rows of the embedding for token input; ``None`` means numbers: ``[B,T,features]``, or tokens that are levels."""
    levels: int = 256
    """Where tokens are levels (``vocab_size=None``): token ``k`` is the number ``k / (levels - 1)``, as of grey."""
    pool: Literal["mean", "last", "cls"] = "mean"
    """How positions become one vector: their mean, the last real one, or a learned token in front that sees them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("num_classes", 1), ("vocab_size", 1), ("levels", 2)):
            value, flag = getattr(self, field), field.replace("_", "-")
            if value is not None and not value >= least:
                raise UserError(f"model.{field}={value} must be at least {least}; set --model.{flag}")
        if self.pool not in ("mean", "last", "cls"):
            raise UserError(f"model.pool={self.pool!r} must be 'mean', 'last' or 'cls'; set --model.pool")
        blocks = [block for block in self.pattern if isinstance(block, BlockConfig)]  # others: `check_types` says so
        if self.pool == "cls" and all(block.mixer.causal for block in blocks):
            raise UserError("model.pool='cls' stands in front, where causal mixers see nothing; use 'last' or 'mean'")

    def make(self) -> SequenceClassifier:
        """The module; allocates nothing."""
        return SequenceClassifier(self)

    def flops_per_token(self, length: int) -> float:
        """Forward FLOPs per token (a multiply-add counts two) in a sequence of `length` tokens, the head shared."""
        encoder = 2.0 * self.dim if self.vocab_size is None else 0.0
        return self.block_flops_per_token(length) + encoder + 2.0 * self.dim * self.num_classes / max(length, 1)


class SequenceClassifier(nn.Module):
    """``apply(params, inputs, segment_ids) -> (logits float32 [B,classes], aux)``; see `ClassifierConfig`."""

    cfg: ClassifierConfig

    def setup(self) -> None:
        cfg = self.cfg
        init = nn.initializers.normal(cfg.init_std)
        if cfg.vocab_size is None:
            self.encoder = Linear(cfg.dim, axes=(None, "embed"), use_bias=True, dtype=jnp.dtype(cfg.dtype))
        else:
            self.embedding = param(self, "embedding", init, (cfg.vocab_size, cfg.dim), ("vocab", "embed"))
        if cfg.pool == "cls":
            self.cls = param(self, "cls", init, (cfg.dim,), ("embed",))
        self.backbone = Backbone(cfg)
        self.classifier = Linear(cfg.num_classes, axes=("embed", None), use_bias=True)

    def hidden(
        self, inputs: Int[Array, "B T"] | Num[Array, "B T features"], segment_ids: Int[Array, "B T"] | None = None
    ) -> tuple[Float32[Array, "B 1 D"], None, dict[str, Array]]:
        """Pooled hidden states, no state, and the auxiliary outputs; in `segment_ids` 0 is padding."""
        x = self._embed(inputs)
        if self.cfg.pool == "cls":
            x = jnp.concatenate([jnp.broadcast_to(self.cls.astype(x.dtype), (x.shape[0], 1, x.shape[2])), x], axis=1)
            if segment_ids is not None:
                segment_ids = jnp.concatenate([segment_ids.max(axis=1, keepdims=True), segment_ids], axis=1)
        x, _, aux = self.backbone(x, None, segment_ids)
        return pool(x, segment_ids, self.cfg.pool)[:, None], None, aux

    def __call__(
        self, inputs: Int[Array, "B T"] | Num[Array, "B T features"], segment_ids: Int[Array, "B T"] | None = None
    ) -> tuple[Float32[Array, "B classes"], dict[str, Any]]:
        """Logits and auxiliary outputs of tokens or of continuous features; in `segment_ids` 0 is padding."""
        hidden, _, aux = self.hidden(inputs, segment_ids)
        return self.classifier(hidden[:, 0]).astype(jnp.float32), aux

    def _embed(self, inputs: Array) -> Array:
        cfg = self.cfg
        if cfg.vocab_size is None:
            levels = inputs.ndim == 2
            return self.encoder(inputs[..., None] / (cfg.levels - 1) if levels else inputs)
        return jnp.take(self.embedding, inputs, axis=0).astype(cfg.dtype)

    def readout(self, params: dict[str, Any]) -> Readout:
        """What makes logits of hidden states, from `params`."""
        head = nn.meta.unbox(params["params"]["classifier"])
        return Readout(head["kernel"].T, head["bias"], None)

    def asked(self, batch: dict[str, Array]) -> tuple[Int[Array, "B 1"], Float[Array, "B 1"]]:
        """Labels and their weights, 0 for rows of padding: a batch of `data.classification` has one target per row."""
        return batch["targets"].sum(axis=1, keepdims=True), batch["loss_mask"].sum(axis=1, keepdims=True)


def pool(x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"] | None, how: str) -> Float32[Array, "B D"]:
    """One vector per sequence, over the positions that are not padding (zeros if all are); ``"cls"``: the first."""
    x = x.astype(jnp.float32)
    if how == "cls":
        return x[:, 0]
    real = jnp.ones(x.shape[:2], bool) if segment_ids is None else segment_ids != 0
    if how == "last":
        time = jnp.arange(x.shape[1])
        newest = jnp.max(jnp.where(real, time, -1), axis=1)
        weight = (time == newest[:, None]).astype(jnp.float32)
    else:
        weight = real / jnp.maximum(real.sum(axis=1, keepdims=True), 1)
    return jnp.einsum("bt,btd->bd", weight, x)
