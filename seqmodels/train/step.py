"""The training step and the evaluation step: pure functions of a state and a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.models import Model
from seqmodels.train.experiment import TrainConfig
from seqmodels.train.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Array]

ACCURACY_BLOCK = 1024
"""Answers whose logits are held at once for the accuracy."""


class Loss(NamedTuple):
    """How token losses are made; evaluation uses the defaults."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    accuracy: bool = True
    slices: int = 0  # values of batch["slices"]


def measure(model: Model, params: Any, batch: Batch, loss: Loss) -> tuple[Metrics, dict[str, Array]]:
    """Sums over what a batch asks (tokens; of a classifier: labels), and the model's auxiliary outputs.

    Sums: ``loss`` (masked losses), ``tokens`` (the mask's sum), ``correct``, and per slice ``slice/loss``,
    ``slice/tokens``, ``slice/correct`` [slices].
    """
    call: Any = model.apply(params, batch["tokens"], segment_ids=batch["segment_ids"], method="hidden")
    hidden, _, aux = call
    (head, bias, softcap), (targets, mask) = model.readout(params), model.asked(batch)
    losses = ops.linear_cross_entropy(
        hidden,
        head,
        targets,
        bias=bias,
        weights=mask,
        label_smoothing=loss.label_smoothing,
        z_loss=loss.z_loss,
        softcap=softcap,
        reduction="none",
    )
    parts = {"loss": losses, "tokens": mask}
    if loss.accuracy:
        frozen = jax.lax.stop_gradient((hidden, head, bias))
        parts["correct"] = mask * (predict(*frozen) == targets)
    sums = {name: jnp.sum(value) for name, value in parts.items()}
    if loss.slices:
        index = batch["slices"].reshape(batch["slices"].shape[0], -1)  # [B] or [B,T]
        member = jax.nn.one_hot(jnp.broadcast_to(index, mask.shape), loss.slices, dtype=jnp.float32)
        held = {f"slice/{name}": jnp.einsum("bt,bts->s", value, member) for name, value in parts.items()}
        sums |= jax.lax.stop_gradient(held)
    return sums, aux


def predict(hidden: Array, head: Array, bias: Array | None = None) -> Array:
    """The likeliest token at every position: ``[B,T,D], [vocab,D], [vocab] -> [B,T]`` int32, by blocks of logits."""
    B, T, D = hidden.shape
    width = max(1, min(T, ACCURACY_BLOCK // B))
    blocks = jnp.pad(hidden, ((0, 0), (0, -T % width), (0, 0))).reshape(B, -1, width, D).swapaxes(0, 1)

    def block(x: Array) -> Array:
        logits = jnp.einsum("btd,vd->btv", x, head.astype(x.dtype), preferred_element_type=jnp.float32)
        return jnp.argmax(logits if bias is None else logits + bias, axis=-1).astype(jnp.int32)

    return jax.lax.map(block, blocks).swapaxes(0, 1).reshape(B, -1)[:, :T]


def objective(model: Model, params: Any, batch: Batch, loss: Loss, total: Array, share: float) -> tuple[Array, Metrics]:
    """What a micro-batch adds to the objective: token losses over the batch's `total` mask, a `share` of ``loss/…``."""
    sums, aux = measure(model, params, batch, loss)
    extra = sum((value for name, value in aux.items() if name.startswith("loss/")), jnp.zeros((), jnp.float32))
    value = sums["loss"] / total + share * extra
    return value, {**sums, **{name: share * scalar for name, scalar in aux.items()}}


def split_batch(batch: Batch, parts: int) -> Batch:
    """``[B,...] -> [parts,B/parts,...]`` with rows dealt out in turn, so that no row changes its device."""

    def split(x: Array) -> Array:
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return nn.with_logical_constraint(x, (None, "batch", "length", *[None] * x.ndim)[: x.ndim])

    return jax.tree.map(split, batch)


def over_micro_batches(function: Callable[[Batch], Any], batch: Batch, count: int) -> Any:
    """The sum of `function` over `count` micro-batches, one after the other."""
    if count == 1:
        return function(batch)

    def body(carry: Any, micro: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, function(micro)), None

    micros = split_batch(batch, count)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], micros))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(body, zeros, micros)[0]


def gradients(model: Model, params: Any, batch: Batch, loss: Loss, accumulate: int) -> tuple[Any, Metrics]:
    """Gradient of the objective, and metrics: sums over tokens, means of auxiliary outputs."""
    total = jnp.maximum(jnp.sum(batch["loss_mask"]), 1.0)
    grad = jax.grad(lambda p, b: objective(model, p, b, loss, total, 1.0 / accumulate), has_aux=True)
    return over_micro_batches(lambda micro: grad(params, micro), batch, accumulate)


def make_step(
    model: Model,
    optimiser: optax.GradientTransformation,
    cfg: TrainConfig,
    schedule: Callable[[Any], Array],
    slices: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure step ``(state, batch) -> (state, metrics)``.

    Metrics are scalars: ``loss`` (mean over the loss mask), ``tokens``, ``grad_norm``, ``param_norm``,
    ``learning_rate``, ``halted``, the model's ``loss/…`` and ``stat/…``, ``correct`` if asked for, and sums per slice.
    A loss or gradient that is not finite sets ``halted``, and the state stays as it was before that step for good.
    """
    loss = Loss(cfg.label_smoothing, cfg.z_loss, cfg.accuracy, slices)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, metrics = gradients(model, state.params, batch, loss, cfg.accumulate)
        metrics["loss"] /= jnp.maximum(metrics["tokens"], 1.0)
        metrics["grad_norm"] = optax.tree.norm(grads)
        halted = state.halted | ~jnp.isfinite(metrics["loss"]) | ~jnp.isfinite(metrics["grad_norm"])
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        new = (optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        old = (state.params, state.opt_state, state.step)
        params, opt_state, count = jax.tree.map(lambda a, b: jnp.where(halted, b, a), new, old)
        metrics["param_norm"] = optax.tree.norm(params)
        metrics["learning_rate"] = schedule(state.step)
        metrics["halted"] = halted
        return TrainState(params, opt_state, count, state.rng, halted), metrics

    return step


def make_eval_step(model: Model, accumulate: int = 1, slices: int = 0) -> Callable[[Any, Batch], Metrics]:
    """``(params, batch) -> sums`` of plain token losses, tokens and right guesses (see `measure`)."""
    loss = Loss(slices=slices)
    return lambda params, batch: over_micro_batches(lambda b: measure(model, params, b, loss)[0], batch, accumulate)
