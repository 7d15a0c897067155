"""The language model: embedding, a stack of blocks in any pattern, final norm, head."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.norm import RMSNorm
from seqmodels.layers.param import param
from seqmodels.mixers.base import SharedParam, merged
from seqmodels.models.block import BlockConfig
from seqmodels.models.stack import Stack, StackState


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """What every model built on a stack of blocks has."""

    dim: int
    """Model width D."""
    depth: int
    """Number of blocks; the pattern repeats until it is reached."""
    pattern: tuple[BlockConfig, ...]
    """Blocks of one period, from the bottom up."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: nothing, whole blocks, or all but the outputs of weight matrices."""
    scan: bool = True
    """Compile one period and loop over it; ``False`` unrolls (faster steps on some machines, slower compilation)."""
    norm_eps: float = 1e-6
    """Added to the mean square in the final norm."""
    init_std: float = 0.02
    """Standard deviation of the embedding and head at initialisation."""

    def __post_init__(self) -> None:
        for field in ("dim", "depth"):
            if getattr(self, field) < 1:
                raise UserError(f"model.{field}={getattr(self, field)} must be at least 1; set --model.{field}")
        for field in ("norm_eps", "init_std"):
            value, flag = getattr(self, field), field.replace("_", "-")
            if not 0 <= value < math.inf:
                raise UserError(f"model.{field}={value} must be at least 0 and finite; set --model.{flag}")
        if not self.pattern:
            raise UserError("model.pattern=() is empty; give at least one BlockConfig")

    @property
    def layers(self) -> tuple[BlockConfig, ...]:
        """The block of every layer, from the bottom up."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.depth))

    def shared_params(self) -> dict[str, SharedParam]:
        """Parameters that mixers want owned by the model, by name."""
        return merged(block.mixer.shared_params(self.dim, self.depth) for block in self.pattern)

    def block_flops_per_token(self, length: int) -> float:
        """Forward FLOPs per token of all blocks in a sequence of `length` tokens."""
        return sum(block.flops_per_token(self.dim, length) for block in self.layers)


@dataclasses.dataclass(frozen=True)
class LMConfig(BackboneConfig):
    """A decoder-only language model."""

    vocab_size: int = 264
    """Rows of the embedding; at least the tokenizer's size (264 holds bytes and specials and divides by 8)."""
    tie_embeddings: bool = True
    """Use the embedding as the output head."""
    softcap: float | None = None
    """Logits become ``softcap * tanh(logits / softcap)``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 1:
            raise UserError(f"model.vocab_size={self.vocab_size} must be at least 1; set --model.vocab-size")
        if self.softcap is not None and not self.softcap > 0:
            raise UserError(f"model.softcap={self.softcap} must be positive or None; set --model.softcap")
        blocks = [block for block in self.pattern if isinstance(block, BlockConfig)]  # others: `check_types` says so
        ahead = [block.label for block in blocks if not block.mixer.causal]
        if ahead:
            raise UserError(f"model.pattern holds {ahead[0]} that reads the future; expected causal mixers")

    def make(self) -> LanguageModel:
        """The module; allocates nothing."""
        return LanguageModel(self)

    def flops_per_token(self, length: int) -> float:
        """Forward FLOPs per token (a multiply-add counts two), head included; training costs about three times this."""
        return self.block_flops_per_token(length) + 2.0 * self.dim * self.vocab_size


class Readout(NamedTuple):
    """What makes logits of hidden states.

    Training and evaluation ask every kind of model for three things: ``hidden(tokens, segment_ids=...)``, its states at
    the A places of a row where it answers; ``readout(params)``; and ``asked(batch)``, the targets and their weights
    ``[B,A]``. A language model answers at every position, a classifier once.
    """

    embedding: Array  # [classes,D]
    bias: Array | None  # [classes]
    softcap: float | None


class Backbone(nn.Module):
    """Stack and final norm, with the model-level parameters that mixers asked for."""

    cfg: BackboneConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: StackState | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], StackState | None, dict[str, Array]]:
        """Normed hidden states, the state and the auxiliary outputs."""
        shared = {
            name: param(self, name, spec.init, spec.shape, spec.axes) for name, spec in self.cfg.shared_params().items()
        }
        B, T, _ = x.shape
        dtype = jnp.dtype(self.cfg.dtype)
        shared |= merged(block.mixer.shared_values(B, T, dtype) for block in self.cfg.pattern)
        x, state, aux = make_stack(self.cfg, name="stack")(x, state, segment_ids, shared)
        return RMSNorm(eps=self.cfg.norm_eps, name="final_norm")(x), state, aux


def make_stack(cfg: BackboneConfig, **kwargs: Any) -> Stack:
    """The stack of blocks that `cfg` describes."""
    return Stack(cfg.pattern, cfg.dim, cfg.depth, cfg.remat, cfg.scan, jnp.dtype(cfg.dtype), **kwargs)


class LanguageModel(nn.Module):
    """Next-token model; see `LMConfig`.

    ``apply(params, tokens, state, segment_ids) -> (logits float32 [B,T,vocab], state, aux)``. With ``state=None``
    (training) no state is built and ``None`` comes back; to decode, start from `init_state`.
    """

    cfg: LMConfig

    def setup(self) -> None:
        cfg = self.cfg
        init, shape, axes = nn.initializers.normal(cfg.init_std), (cfg.vocab_size, cfg.dim), ("vocab", "embed")
        self.embedding = param(self, "embedding", init, shape, axes)
        if not cfg.tie_embeddings:
            self.lm_head = param(self, "lm_head", init, shape, axes)
        self.backbone = Backbone(cfg)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        state: StackState | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], StackState | None, dict[str, Array]]:
        """Normed hidden states before the head, the state and the auxiliary outputs."""
        table = nn.with_logical_constraint(self.embedding, ("vocab", None))  # whole rows, or GSPMD copies activations
        x = jnp.take(table, tokens, axis=0).astype(self.cfg.dtype)
        x = nn.with_logical_constraint(x, ("batch", "length", None))
        return self.backbone(x, state, segment_ids)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: StackState | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> tuple[Float32[Array, "B T vocab"], StackState | None, dict[str, Array]]:
        """Logits, the state and the auxiliary outputs."""
        x, state, aux = self.hidden(tokens, state, segment_ids)
        head = self.embedding if self.cfg.tie_embeddings else self.lm_head
        logits = jnp.einsum("btd,vd->btv", x, head.astype(x.dtype), preferred_element_type=jnp.float32)
        if self.cfg.softcap is not None:
            logits = self.cfg.softcap * jnp.tanh(logits / self.cfg.softcap)
        return logits, state, aux

    def head(self, params: dict[str, Any]) -> Float[Array, "vocab D"]:
        """The output matrix inside `params`, for `seqmodels.ops.linear_cross_entropy`."""
        return nn.meta.unbox(params["params"]["embedding" if self.cfg.tie_embeddings else "lm_head"])

    def readout(self, params: dict[str, Any]) -> Readout:
        """What makes logits of hidden states, from `params`."""
        return Readout(self.head(params), None, self.cfg.softcap)

    def asked(self, batch: dict[str, Array]) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
        """Targets and their weights: every position is asked for the next token."""
        return batch["targets"], batch["loss_mask"]

    def init_state(self, batch: int, max_length: int | None = None) -> StackState:
        """Zero state for `batch` sequences of at most `max_length` tokens (attention caches need the bound)."""
        return make_stack(self.cfg, parent=None).init_state(batch, max_length)

    def state_bytes(self, max_length: int | None = None) -> int:
        """Bytes of state per sequence."""
        leaves = jax.tree.leaves(jax.eval_shape(lambda: self.init_state(1, max_length)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
