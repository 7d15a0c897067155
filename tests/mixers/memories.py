"""What the tests of mixtures of memories share: well-scaled parameters, and the mixture written as masks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels.layers.routing import Router
from seqmodels.mixers import Context, Mamba2Config, Mixer, MixtureOfMemoriesConfig
from seqmodels.mixers.parts import Segments
from seqmodels.sharding import unbox

DIM = 32


class Host(Mixer):
    """A module that runs a function of itself."""

    function: Any = None

    @nn.compact
    def __call__(self):
        return self.function(self)


def build(cfg: MixtureOfMemoriesConfig, seed: int = 1):
    """The mixer, and parameters of unit gain."""
    mixer = cfg.make(DIM)
    params = unbox(jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 2, DIM))))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    scale = lambda leaf: leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 1.0  # noqa: E731
    return mixer, jax.tree.unflatten(
        structure, [scale(leaf) * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    )


def route(cfg, params, x):
    """The routing of ``x``."""
    return Router(cfg.num_memories, cfg.top_k).apply({"params": params["gate"]}, x)


def of_memory(cfg, params, m):
    """The inner mixer's parameters as memory `m` has them (``None``: the shared memory)."""
    own = {}
    for name in cfg.rule.streams(DIM).memory:
        stacked = params.get(f"{name}_proj")
        shared = m is None or stacked is None
        own[f"{name}_proj"] = params[f"shared_{name}"] if shared else jax.tree.map(lambda leaf: leaf[m], stacked)
    merged = {name: p for name, p in params.items() if name != "gate" and not name.startswith("shared_")} | own
    if not isinstance(cfg.inner, Mamba2Config):
        return merged
    order = [merged.pop(f"{name}_proj")["kernel"] for name in ("z", "x", "B", "C", "dt")]
    return merged | {"in_proj": {"kernel": jnp.concatenate(order, axis=-1)}}


def masked(cfg, params, x, ids):
    """The mixture as M + 1 full passes, in which the tokens of other memories are padding. ``ids [B,T]``."""
    inner = cfg.inner.make(DIM)
    routed = route(cfg, params, x)
    memories = list(range(cfg.num_memories)) + [None] * cfg.shared_memory
    total, streams = 0.0, {}
    for m in memories:
        chosen = jnp.ones_like(routed.choice) if m is None else routed.choice == m
        weight = 1.0 if m is None else jnp.sum(chosen * routed.weight, axis=-1)[..., None, None]
        own = jnp.where(chosen.any(axis=-1), ids, 0)

        def run(host, own=own):
            streams = inner.project(host, x)
            o, _ = inner.recur(inner.weights(host), streams, inner.zeros(x.shape[0]), Segments(own))
            return o, streams

        o, streams = Host(inner.cfg, DIM, function=run).apply({"params": of_memory(cfg, params, m)})
        total = total + weight * o
    finish = lambda host: inner.readout(host, total, streams, Context())  # noqa: E731
    return Host(inner.cfg, DIM, function=finish).apply({"params": of_memory(cfg, params, 0)})
