"""Top-k routing of tokens to experts or memories, and the losses that keep it balanced.

Switch Transformer (Fedus et al. 2021, arXiv:2101.03961) for the balance, ST-MoE (Zoph et al. 2022, arXiv:2202.08906)
for the z-loss. Everything here is float32 whatever the model computes in: a rounding error can change a choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.layers.linear import default_kernel_init
from seqmodels.layers.param import param


class Routing(NamedTuple):
    """Where every token goes."""

    choice: Array  # [B,T,k] int32, the likeliest first
    weight: Array  # [B,T,k] float32: their probabilities, made to sum to 1; constant for k = 1
    probability: Array  # [B,T,E] float32
    logits: Array  # [B,T,E] float32


class Router(nn.Module):
    """Softmax over `experts`, of which each token takes the `top_k` likeliest; ties go to the lower index."""

    experts: int
    top_k: int
    param_dtype: Any = jnp.float32
    use_bias: bool = False
    kernel_init: Callable[..., Array] = default_kernel_init

    @nn.compact
    def __call__(self, x: Array) -> Routing:
        shape = (x.shape[-1], self.experts)
        kernel = param(self, "kernel", self.kernel_init, shape, ("embed", None), self.param_dtype)
        wide = accumulate_dtype(x)
        logits = jnp.dot(x.astype(wide), kernel.astype(wide), precision=jax.lax.Precision.HIGHEST)
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, (self.experts,), (None,), self.param_dtype)
            logits = logits + jnp.broadcast_to(bias.astype(wide), logits.shape)
        top, choice = largest(logits, self.top_k)
        return Routing(choice, jax.nn.softmax(top, axis=-1), jax.nn.softmax(logits, axis=-1), logits)


def largest(logits: Array, k: int) -> tuple[Array, Array]:
    """``[...,E] -> [...,k]``: the k largest and where they are, as `jax.lax.top_k`, which a mesh gathers whole."""
    number = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    left = jax.lax.stop_gradient(jnp.maximum(logits, jnp.finfo(logits.dtype).min))  # above the -inf of what is taken
    values, places = [], []
    for _ in range(k):
        place = jnp.argmax(left, axis=-1, keepdims=True).astype(jnp.int32)
        taken = number == place
        values.append(jnp.sum(jnp.where(taken, logits, 0), axis=-1))
        places.append(place[..., 0])
        left = jnp.where(taken, -jnp.inf, left)
    return jnp.stack(values, axis=-1), jnp.stack(places, axis=-1)


class Load(NamedTuple):
    """Shares of a router's real tokens."""

    fraction: Array  # [E]: tokens that chose an expert, per token; sums to k. Has no gradient
    probability: Array  # [E]: mean probability, sums to 1


def load(routing: Routing, real: Array) -> Load:
    """The `Load` of the tokens where ``real [B,T]`` is true; padding does not count."""
    mask = real.astype(routing.probability.dtype)
    total = jnp.maximum(jnp.sum(mask), 1.0)
    chosen = jax.nn.one_hot(routing.choice, routing.probability.shape[-1], dtype=mask.dtype)
    return Load(
        jnp.einsum("btke,bt->e", chosen, mask) / total,
        jnp.einsum("bte,bt->e", routing.probability, mask) / total,
    )


def balance_loss(load: Load) -> Array:
    """``E * sum_e fraction_e probability_e``: k for a uniform router, and the more the likelier experts get more."""
    return load.fraction.shape[0] * jnp.sum(load.fraction * load.probability)


def router_z_loss(routing: Routing, real: Array) -> Array:
    """Mean square of the log of the softmax's denominator: keeps logits small."""
    mask = real.astype(routing.logits.dtype)
    square = jnp.square(jax.nn.logsumexp(routing.logits, axis=-1))
    return jnp.sum(square * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def mesh_size(logical: str) -> int:
    """Devices over which the mesh and the rules in force split the logical axis `logical`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    over = nn.logical_to_mesh_axes((logical,))
    names = over[0] if over is not None and len(over) else None
    size = 1
    for name in (names,) if isinstance(names, str) else names or ():
        size *= mesh.shape.get(name, 1)
    return size
