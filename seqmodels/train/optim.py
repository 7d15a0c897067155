"""Optimisers, learning-rate schedules, and which parameters decay.

Every optimiser is one chain: clip, scale by the rule, add decayed weights, scale by the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from seqmodels.axes import Array
from seqmodels.sharding import path_name
from seqmodels.train.experiment import OptimConfig

SYSTEM = ("log_A_real", "A_imag", "Lambda_re", "Lambda_im", "P", "B", "log_dt", "log_step")
"""Parameters of the linear systems of S4, S4D, S5 and H3 that set how and what a state remembers; C only reads it."""
NO_DECAY = ("A_log", "D", "dt_bias", "bias", "scale", "sinks", "lower_bounds", *SYSTEM)
"""Parameters that set a decay, a state-space system, a skip, an offset or a gain: pulling them to zero changes what the
layer is."""

MUON_RMS = 0.2
"""Root mean square of Muon's updates, which matches AdamW's so that both share a learning rate (arXiv:2502.16982)."""


def is_matrix(path: str, ndim: int) -> bool:
    """Whether the parameter is a matrix in every layer; scanned layers (under ``periods``) add an axis in front."""
    return ndim - ("periods" in path.split("/")) >= 2


def decays(path: str, ndim: int) -> bool:
    """Whether weight decay applies to the parameter at `path` (``"params/…/kernel"``).

    Matrices decay: projections, convolutions, the embedding and the head. Norms, biases, decays (`A_log`, `dt_bias`),
    skips (`D`) and everything else with one number per channel or head do not.
    """
    return path.split("/")[-1] not in NO_DECAY and is_matrix(path, ndim)


def orthogonalised(path: str, ndim: int) -> bool:
    """Whether Muon (not AdamW) updates the parameter: projection matrices, but no convolution, embedding or head."""
    parts = path.split("/")
    apart = any("conv" in part or part in ("encoder", "classifier") for part in parts)
    return parts[-1] == "kernel" and not apart and is_matrix(path, ndim)


def of_system(path: str, ndim: int) -> bool:
    """Whether the parameter belongs to a linear system, which ``OptimConfig.system_learning_rate`` is about."""
    return path.split("/")[-1] in SYSTEM


def over_paths(rule: Callable[[str, int], Any], params: Any) -> Any:
    """``rule(path, ndim)`` for every parameter, as a tree."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: rule(path_name(path), leaf.ndim), params)


def make_schedule(cfg: OptimConfig, steps: int) -> Callable[[Any], Array]:
    """Learning rate of update 0, 1, …, `steps` - 1.

    Linear warm-up over ``min(warmup_steps, steps)`` updates; then cosine to ``final_fraction`` of the peak at the last
    update, or flat until the last ``decay_fraction`` of all updates and linear from there (WSD, arXiv:2404.06395), or
    flat.
    """
    warmup = min(cfg.warmup_steps, steps)
    last = max(steps - 1, 1)

    def schedule(count: Any) -> Array:
        step = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        if cfg.schedule == "cosine":
            share = jnp.clip((step - warmup) / max(last - warmup, 1), 0.0, 1.0)
            fall = cfg.final_fraction + (1 - cfg.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * share))
        elif cfg.schedule == "wsd":
            length = cfg.decay_fraction * steps
            share = jnp.clip((step - (last - length)) / max(length, 1e-9), 0.0, 1.0)
            fall = 1 - (1 - cfg.final_fraction) * share
        else:
            fall = jnp.ones_like(step)
        return cfg.learning_rate * rise * fall

    return schedule


def make_optimiser(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of `cfg` for a run of `steps` updates."""
    clip = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm > 0 else []
    own_rate = [] if cfg.system_learning_rate is None else [scale_system(cfg.system_learning_rate / cfg.learning_rate)]
    return optax.chain(
        *clip,
        make_rule(cfg),
        *own_rate,
        optax.add_decayed_weights(cfg.weight_decay, mask=lambda params: over_paths(decays, params)),
        optax.scale_by_learning_rate(make_schedule(cfg, steps)),
    )


def scale_system(factor: float) -> optax.GradientTransformation:
    """Multiply the updates of linear systems by `factor`."""

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(
            lambda own, update: factor * update if own else update, over_paths(of_system, updates), updates
        )

    return optax.stateless(scale)


def make_rule(cfg: OptimConfig) -> optax.GradientTransformation:
    """The update rule alone: direction and size of an update at learning rate one."""
    adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
    if cfg.name == "adamw":
        return adam
    if cfg.name == "lion":
        return optax.scale_by_lion(cfg.b1, cfg.b2)
    if cfg.name == "adafactor":
        return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    muon = optax.chain(
        scale_by_muon(beta=cfg.momentum, eps=cfg.eps, weight_dimension_numbers=_muon_axes),
        optax.stateless(lambda updates, params: jax.tree.map(_muon_scale, updates)),
    )
    label = lambda path, ndim: "muon" if orthogonalised(path, ndim) else "adam"  # noqa: E731
    return optax.partition({"muon": muon, "adam": adam}, lambda params: over_paths(label, params))


def _muon_axes(params: Any) -> Any:
    """The last two axes of every matrix that `optax.partition` leaves; layers in front are a batch."""
    return jax.tree.map(lambda leaf: MuonDimensionNumbers(reduction_axis=-2, output_axis=-1), params)


def _muon_scale(update: Array) -> Array:
    """An orthogonal matrix with root mean square `MUON_RMS`."""
    return MUON_RMS * max(update.shape[-2:]) ** 0.5 * update
