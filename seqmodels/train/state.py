"""Everything that a training step reads and writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqmodels.axes import Array
from seqmodels.models import Model
from seqmodels.sharding import Partitioner, unbox


class TrainState(NamedTuple):
    """Parameters, optimiser state, and counters."""

    params: Any  # {"params": ...}, float32
    opt_state: Any
    step: Any  # [] int32: updates done
    rng: Any  # [2] uint32: key data, of what is random after the initialisation (samples)
    halted: Any  # [] bool: a loss or gradient was not finite; from that step on nothing changes any more


class Placed(NamedTuple):
    """A state described without being allocated, where its arrays lie, and how to make it."""

    abstract: TrainState
    shardings: TrainState
    init: Callable[[Array], TrainState]  # from a key; parameters boxed


def init_state(model: Model, optimiser: optax.GradientTransformation, key: Array) -> TrainState:
    """A fresh state; its parameters are still boxed with their logical axis names."""
    init_key, rng = jax.random.split(key)
    params = model.init(init_key, jnp.zeros((1, 1), jnp.int32))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(params, optimiser.init(unbox(params)), zero, jax.random.key_data(rng), jnp.zeros((), bool))


def place_state(model: Model, optimiser: optax.GradientTransformation, partitioner: Partitioner) -> Placed:
    """Shapes, dtypes and shardings of the state, from ``jax.eval_shape``; call it outside of any mesh."""
    init = functools.partial(init_state, model, optimiser)
    boxed = jax.eval_shape(init, jax.random.key(0))
    abstract = unbox(boxed)
    params = partitioner.parameters(boxed.params)
    opt_state = partitioner.like(abstract.opt_state, abstract.params, params)
    whole = partitioner.replicated
    return Placed(abstract, TrainState(params, opt_state, whole, whole, whole), init)


def create_state(placed: Placed, seed: int) -> TrainState:
    """A fresh state, every array born where `placed` puts it."""
    return unbox(jax.jit(placed.init, out_shardings=placed.shardings)(jax.random.key(seed)))
