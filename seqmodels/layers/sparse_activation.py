"""Sparse modular activation (SMA; Ren et al. 2023, arXiv:2306.11197): a module runs on the tokens that a router picks.

Per token, ``π = softmax(u / τ)`` over (off, on), with ``u = W_r x + b_r`` and a learned temperature τ. The decision is
hard, ``argmax π``, and nothing estimates its gradient; what the module returns is multiplied by the confidence
``max π``, through which the router learns, from active tokens only. Active tokens are packed into a shorter row, the
module runs on that row, and its outputs go back to where the tokens came from; all other tokens get zero.

**Shapes and overflow.** The packed row has a static length: `capacity` times the length of the call, rounded up, or
the full length. A row's first active tokens fill it in the order of time. Active tokens for which there is no place
count as inactive. The rule sees no future, but how much room there is depends on how a sequence is cut into calls.
While nothing overflows, the result does not depend on the capacity. (The paper's code packs to the longest row of the
batch.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from seqmodels.axes import Array
from seqmodels.layers.param import param
from seqmodels.layers.routing import Router
from seqmodels.ops import segments


class Decision(NamedTuple):
    """What the router says about every token."""

    active: Bool[Array, "B T"]
    confidence: Float[Array, "B T"]  # probability of the likelier choice, in [1/2, 1]; float32


class Packing(NamedTuple):
    """Active tokens in P places of a shorter row, in the order of time."""

    source: Int[Array, "B P"]  # the token that stands at a place, T where the place is empty
    place: Int[Array, "B T"]  # the place of a token, P where it is inactive or found no place
    count: Int[Array, "B"]  # places in use

    def compress(self, x: Shaped[Array, "B T *D"]) -> Shaped[Array, "B P *D"]:
        """Active tokens to their places; empty places hold zeros."""
        return segments.move(x, self.source, self.place)

    def extract(self, y: Shaped[Array, "B P *D"]) -> Shaped[Array, "B T *D"]:
        """Places back to their tokens; all other tokens get zeros."""
        return segments.move(y, self.place, self.source)

    @property
    def served(self) -> Bool[Array, "B T"]:
        """Whether a token has a place."""
        return self.place < self.source.shape[1]


Run = Callable[[Array, Packing], tuple[Array, Any]]
"""A module on packed tokens ``[B,P,D]``: its outputs ``[B,P,·]``, and anything else it wants to hand back."""


def pack(active: Bool[Array, "B T"], places: int) -> Packing:
    """Give the first `places` active tokens of every row a place."""
    rank = jnp.cumsum(active.astype(jnp.int32), axis=1) - 1
    place = jnp.where(active & (rank < places), rank, places)
    length = active.shape[1]
    put = jax.vmap(lambda row, at: row.at[at].set(jnp.arange(length, dtype=jnp.int32), mode="drop"))
    source = put(jnp.full((active.shape[0], places), length, jnp.int32), place)
    return Packing(source, place, jnp.sum(place < places, axis=1, dtype=jnp.int32))


class Configurator(nn.Module):
    """The latent configurator: ``[B,T,D] -> Decision``, in float32. Ties are inactive."""

    temperature_scale: float = 1.0  # τ starts at this times sqrt(D)
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Decision:
        init = nn.initializers.truncated_normal(0.02)
        router = Router(2, 1, self.param_dtype, use_bias=True, kernel_init=init, name="router")
        routed = router(x)
        start = nn.initializers.constant(math.log(self.temperature_scale * math.sqrt(x.shape[-1])))
        log_temperature = param(self, "log_temperature", start, (), (), self.param_dtype)
        cooled = routed.logits / jnp.exp(log_temperature.astype(routed.logits.dtype))
        return Decision(routed.choice[..., 0] == 1, jnp.max(jax.nn.softmax(cooled, axis=-1), axis=-1))


class SparseActivation(nn.Module):
    """``(y, handed, aux) = SparseActivation()(x, run, real)``; see the module's docstring.

    ``y [B,T,·]`` is zero at tokens without a place. `run` is any module on the packed tokens: ``lambda rows, packing:
    (mlp(rows), None)``, or a sequence mixer that is told by ``packing.compress`` which document every packed token
    belongs to. What it hands back beside its outputs is `handed`. ``aux`` has ``stat/activation``, the share a of real
    tokens that are active; ``stat/activation_spread``, ``4 a (1 - a)``, whose mean over layers is 0 only where all
    layers take all tokens or none; and ``stat/overflow``, the share of active ones that found no place.
    """

    capacity: float | None = None  # places of a packed row per token of the call; None: one each
    temperature_scale: float = 1.0
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], run: Run, real: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T *F"], Any, dict[str, Array]]:
        if self.capacity is not None and not 0 < self.capacity <= 1:
            raise ValueError(f"capacity={self.capacity} is not in (0, 1]; give the share of tokens that find a place")
        real = jnp.ones(x.shape[:2], bool) if real is None else real
        decision = Configurator(self.temperature_scale, self.param_dtype, name="configurator")(x)
        active = decision.active & real
        places = x.shape[1] if self.capacity is None else math.ceil(self.capacity * x.shape[1])
        packing = pack(active, places)
        rows, handed = run(packing.compress(x), packing)
        weight = jnp.where(packing.served, decision.confidence, 0.0)
        y = packing.extract(rows)
        y = (y * weight.reshape(*weight.shape, *[1] * (y.ndim - 2))).astype(rows.dtype)
        total = jnp.sum(active)
        share = total / jnp.maximum(jnp.sum(real), 1)
        aux = {
            "stat/activation": share,
            "stat/activation_spread": 4.0 * share * (1.0 - share),
            "stat/overflow": 1.0 - jnp.sum(packing.count) / jnp.maximum(total, 1) - (total == 0),
        }
        return y, handed, jax.tree.map(lambda value: value.astype(jnp.float32), aux)
