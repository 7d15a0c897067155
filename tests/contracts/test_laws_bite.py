"""The laws can fail: each of these mixers has one classic mistake, and the law that is there for it says so."""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import pytest

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers.linear import Linear
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig
from tests.contracts import laws

Mistake = Literal[
    "none", "future", "no past", "documents", "finished", "padding", "forgets", "overflow", "half", "unnamed"
]


@dataclasses.dataclass(frozen=True)
class FadingConfig(MixerConfig):
    """``h_t = 0.9 h_{t-1} + W x_t``, with one mistake."""

    mistake: Mistake = "none"

    def make(self, dim: int, **kwargs: Any) -> "Fading":
        return Fading(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        return 2.0 * dim * dim


class FadingState(NamedTuple):
    cursor: Cursor
    memory: Array  # [B,D] float32


class Fading(Mixer):
    @nn.compact
    def __call__(self, x, state=None, segment_ids=None, context=Context()):  # noqa: B008
        mistake = self.cfg.mistake
        state = self.init_state(x.shape[0]) if state is None else state
        entry = state.cursor.enter(segment_ids, x.shape[1])
        memory = state.memory if mistake == "finished" else entry.carried(state.memory)
        v = Linear(self.dim, axes=("embed", "heads"), dtype=self.dtype, name="v_proj")(x)
        if mistake == "overflow":
            v = jnp.exp(v)
        if mistake == "unnamed":
            v = v + jnp.broadcast_to(self.param("bias", nn.initializers.zeros, (self.dim,)), v.shape)
        ids = segment_ids
        if ids is not None and mistake == "documents":
            ids = jnp.minimum(ids, 1)
        if ids is not None and mistake == "padding":
            ids = jnp.maximum(ids, 1)
        if mistake != "no past":
            wide = v.astype(jnp.float32)
            v, memory = ops.linear_scan(
                jnp.full_like(wide, 0.9), wide, state=memory.astype(jnp.float32), segment_ids=ids
            )
        if mistake == "future":
            v = v + jnp.pad(v, ((0, 0), (0, 1), (0, 0)))[:, 1:]
        if mistake == "forgets":
            memory = jnp.zeros_like(memory)
        if mistake == "half":
            memory = memory.astype(self.dtype)
        return v.astype(self.dtype), FadingState(entry.cursor, memory), {}

    def init_state(self, batch, max_length=None):
        return FadingState(Cursor.zeros(batch), jnp.zeros((batch, self.dim), jnp.float32))


@pytest.mark.parametrize(
    ("mistake", "law", "message"),
    [
        ("future", laws.check_causality, "depends on the future"),
        ("no past", laws.check_causality, "ignores the past"),
        ("documents", laws.check_segments, "documents that meet"),
        ("finished", laws.check_segments, "another call's"),
        ("padding", laws.check_padding, "padding"),
        ("forgets", laws.check_split, "calls of"),
        ("forgets", laws.check_steps, "step by step"),
        ("overflow", laws.check_extremes, "not finite"),
        ("half", laws.check_state, "became"),
        ("unnamed", laws.check_parameters, "no logical axis names"),
    ],
)
def test_a_mistake_is_found(mistake, law, message):
    with pytest.raises(AssertionError, match=message):
        law(FadingConfig(mistake))
