"""Everything that a training step reads and writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqmodels.axes import Array
from seqmodels.models.lm import LanguageModel
from seqmodels.sharding import Partitioner, initialise, unbox


class TrainState(NamedTuple):
    """Parameters, optimiser state, and counters."""

    params: Any  # {"params": ...}, float32
    opt_state: Any
    step: Array  # [] int32: updates done
    rng: Array  # [2] uint32: key data, of what is random after the initialisation (samples)
    halted: Array  # [] bool: a loss or gradient was not finite; from that step on nothing changes any more


class Placed(NamedTuple):
    """A state described without being allocated, and where its arrays lie."""

    abstract: TrainState
    shardings: TrainState


def init_state(model: LanguageModel, optimiser: optax.GradientTransformation, key: Array) -> TrainState:
    """A fresh state; its parameters are still boxed with their logical axis names."""
    init_key, rng = jax.random.split(key)
    params = model.init(init_key, jnp.zeros((1, 1), jnp.int32))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(params, optimiser.init(unbox(params)), zero, jax.random.key_data(rng), jnp.zeros((), bool))


def place_state(model: LanguageModel, optimiser: optax.GradientTransformation, partitioner: Partitioner) -> Placed:
    """Shapes, dtypes and shardings of the state, from ``jax.eval_shape``; call it outside of any mesh."""
    boxed = jax.eval_shape(lambda key: init_state(model, optimiser, key), jax.random.key(0))
    abstract = unbox(boxed)
    params = partitioner.parameters(boxed.params)
    opt_state = partitioner.like(abstract.opt_state, abstract.params, params)
    whole = partitioner.replicated
    return Placed(abstract, TrainState(params, opt_state, whole, whole, whole))


def create_state(
    model: LanguageModel, optimiser: optax.GradientTransformation, placed: Placed, seed: int
) -> TrainState:
    """A fresh state, every array born where `placed` puts it."""
    return initialise(lambda key: init_state(model, optimiser, key), placed.shardings, jax.random.key(seed))
