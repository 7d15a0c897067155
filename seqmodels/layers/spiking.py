"""Leaky integrate-and-fire neurons whose time axis is the sequence."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jaxtyping import Float, Int

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops.scan import scan_tokens

STEEPNESS = 4.0  # of the sigmoid whose slope stands for the slope of a step


@jax.custom_vjp
def spike(excess: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 where `excess` is not negative, else 0; the gradient is that of ``sigmoid(4 excess)``."""
    return (excess >= 0).astype(excess.dtype)


def _backward(excess: Array, g: Array) -> tuple[Array]:
    soft = jax.nn.sigmoid(STEEPNESS * excess)
    return (g * STEEPNESS * soft * (1 - soft),)


spike.defvjp(lambda excess: (spike(excess), excess), _backward)


def integrate_and_fire(
    x: Float[Array, "B T D"],
    state: Float[Array, "B D"],
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """``v ← v + (x - v) / τ``; a spike where v reaches `threshold`, after which v is 0.

    The reset carries no gradient. Threshold inclusive: a constant input of 2 fires at every step for τ = 2.

    Args:
      x: ``[B,T,D]``.
      state: ``[B,D]`` potentials, float32.
      segment_ids: ``[B,T]`` integers, 0 is padding; see ``docs/design.md``.
      tau: time constant, in tokens.
      threshold: potential at which a neuron fires.

    Returns:
      Spikes ``[B,T,D]``, 0 or 1, in the dtype of `x`, 0 at padding; and the potentials.
    """
    dtype = accumulate_dtype(x)
    if x.shape[1] == 0:
        return x, state.astype(dtype)

    def step(v: Array, x: Array) -> tuple[Array, Array]:
        v = v + (x - v) / tau
        fired = spike(v - threshold)
        return v * (1 - jax.lax.stop_gradient(fired)), fired

    fired, state = scan_tokens(step, state.astype(dtype), x.astype(dtype), segment_ids)
    return fired.astype(x.dtype), state


class Neurons:
    """The non-linearities of one call, in the order in which they are used; `after` gathers their potentials."""

    def __init__(self, potentials: Sequence[Array], segment_ids: Array | None, tau: float, spiking: bool = True):
        self.before, self.segment_ids, self.tau, self.spiking = iter(potentials), segment_ids, tau, spiking
        self.after: list[Array] = []

    def fire(self, x: Array, threshold: float) -> Array:
        """Spikes of ``x [B,T,D]``; ``relu(x)`` in a layer without spikes."""
        if not self.spiking:
            return jax.nn.relu(x)
        fired, potential = integrate_and_fire(x, next(self.before), self.segment_ids, tau=self.tau, threshold=threshold)
        self.after.append(potential)
        return fired
