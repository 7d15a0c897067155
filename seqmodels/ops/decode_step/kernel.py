"""What the kernels of `decode_step` share: routes to states, refusals, derivatives (those of the XLA form)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import dispatch
from seqmodels.ops.decode_step import reference
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.pallas.gradient import differentiable
from seqmodels.ops.pallas.run import same_axes


class Inputs(NamedTuple):
    """Floating-point arguments of the op."""

    q: Array
    k: Array
    v: Array
    beta: Array | None
    log_decay: Array | None
    state: Array


class Call(NamedTuple):
    """What is static about a call."""

    launch: Callable[..., tuple[Array, Array]]  # (call, inputs, route [B] or None) -> out [B,H,V], state
    scale: float
    num_segments: int | None
    interpret: Interpretation | None


def run(
    launch: Callable[..., tuple[Array, Array]],
    inputs: Inputs,
    segment_ids: Array | None,
    scale: float,
    num_segments: int | None,
) -> tuple[Array, Array]:
    """``(out, state)`` by the kernel that `launch` starts, as the op."""
    inputs, segment_ids = same_axes((inputs, segment_ids))
    return _kernel(Call(launch, scale, num_segments, dispatch.interpretation()), inputs, segment_ids)


def routes(segment_ids: Array | None, num_segments: int | None) -> Array | None:
    """``[B]`` int32: ``slot * 2 + real`` of every token."""
    if segment_ids is None:
        return None
    real = (segment_ids != 0).astype(jnp.int32)
    slot = 0 if num_segments is None else jnp.maximum(segment_ids - 1, 0)
    return (slot * 2 + real).astype(jnp.int32)


def per_channel(log_decay: Array | None, like: Inputs) -> Array | None:
    """The log-decay of every value head and key channel, ``[B,H,K]``."""
    if log_decay is None:
        return None
    B, H, _ = like.v.shape
    rates = log_decay if log_decay.ndim == 3 else jnp.broadcast_to(log_decay, (B, H))[..., None]
    return jnp.broadcast_to(rates, (B, H, like.q.shape[2]))


def _forward(call: Call, inputs: Inputs, ids: Array | None, save: bool):
    del save  # the inputs are all that the gradient needs
    states = inputs.state if call.num_segments is not None else inputs.state[:, None]
    operands = same_axes((inputs._replace(state=states), routes(ids, call.num_segments)))
    out, after = call.launch(call, *operands)
    return (out.astype(inputs.v.dtype), after if call.num_segments is not None else after[:, 0]), ()


def _backward(call: Call, inputs: Inputs, ids: Array | None, states: Any, cotangents: Any) -> Inputs:
    return jax.vjp(lambda inputs: _plain(call, inputs, ids), inputs)[1](cotangents)[0]


def _plain(call: Call, inputs: Inputs, ids: Array | None) -> tuple[Array, Array]:
    return reference.run(*inputs, ids, scale=call.scale, num_segments=call.num_segments)


_kernel = jax.jit(differentiable(_forward, _backward, _plain), static_argnums=0)
