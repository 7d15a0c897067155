"""Train AL-RNNs on one long series, several seeds at once, with teacher forcing.

The recipe of arXiv:2410.14240: windows at random starts, fresh noise on every batch, RAdam with an exponentially
decaying rate; the weights that are kept are those whose free run scores best on the valid split. The seeds are a mapped
axis of one compiled program, which suits a model whose steps are too small to fill a core.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from seqmodels.axes import Array
from seqmodels.config import to_json
from seqmodels.data.dynamics import Flow
from seqmodels.errors import UserError
from seqmodels.models.alrnn import ALRNNConfig

STATE = "state.npz"

Score = Callable[[Float[np.ndarray, "T N"]], float]
"""Of a generated trajectory; less is better, and NaN is worst."""


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """How an AL-RNN is trained; defaults of the paper's code for Lorenz-63."""

    model: ALRNNConfig
    data: Flow
    interval: int | None = 16
    """Steps between two forcings (tau); ``None`` never forces."""
    strength: float = 1.0
    """Of the forcing (alpha)."""
    window: int = 200
    """Steps that are predicted per window."""
    epochs: int = 2000
    batches_per_epoch: int = 50
    batch_size: int = 16
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    noise: float = 0.05
    """Standard deviation of what is added to every row of a window; its rows are inputs and targets alike."""
    evaluate_every: int = 25
    """Epochs between two scores."""
    free_run: int = 10_000
    """Rows that are generated to be scored."""
    discard: int = 1_000
    """Rows that are generated before them."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        for name in ("window", "epochs", "batches_per_epoch", "batch_size", "evaluate_every", "free_run"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}; use at least 1")
        if self.data.train_rows <= self.window:
            raise UserError(f"window={self.window} of train_rows={self.data.train_rows}; use a shorter window")
        if self.epochs % self.evaluate_every:
            raise UserError(f"epochs={self.epochs} with evaluate_every={self.evaluate_every}; use a multiple of it")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds={self.seeds}; use different ones, at least one")


class TrainingState(NamedTuple):
    """Of all seeds; every array leads with their axis."""

    params: Any
    optimizer: Any
    best: Any  # the params with the least score so far
    score: Float[Array, "S"]  # theirs
    epoch: Array  # [S], all the same: epochs done


def train(config: DynamicsConfig, score: Score, directory: Path | None = None) -> TrainingState:
    """Train all seeds.

    Args:
      config: the recipe.
      score: of the observed part of a free run that starts at the first row of the valid split.
      directory: where the state is kept after every score. A run that was interrupted goes on from there and comes to
        the same numbers. ``None`` keeps nothing.

    Returns:
      The final state; ``best`` is what to use.

    Raises:
      UserError: `directory` holds the state of another config.
    """
    first = jnp.asarray(config.data.series("valid")[:1], jnp.float32)
    series = jnp.asarray(config.data.series("train"), jnp.float32)
    keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])
    state = start(config, keys)
    state = state if directory is None else load(state, config, directory / STATE)
    while int(state.epoch[0]) < config.epochs:
        state = advance(config, series, state, keys)
        scores = [score(run) for run in np.asarray(observed(config, state.params, first), np.float64)]
        state = keep_best(state, np.asarray(scores, np.float32))
        if directory is not None:
            save(state, config, directory / STATE)
    return state


@functools.partial(jax.jit, static_argnums=0)
def start(config: DynamicsConfig, keys: Array) -> TrainingState:
    """Of all seeds, whose random keys are `keys`."""
    series = jnp.zeros((1, 2, config.model.observed))

    def one(key: Array) -> TrainingState:
        params = config.model.make().init(jax.random.fold_in(key, 0), series)
        return TrainingState(params, optimizer(config).init(params), params, jnp.float32(jnp.inf), jnp.int32(0))

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnums=0)
def advance(config: DynamicsConfig, series: Float[Array, "T N"], state: TrainingState, keys: Array) -> TrainingState:
    """`epochs` of all seeds."""
    return jax.vmap(lambda state, key: epochs(config, series, state, key))(state, keys)


def optimizer(config: DynamicsConfig) -> optax.GradientTransformation:
    """RAdam; its rate falls from the first update to the last by a constant factor."""
    updates = config.epochs * config.batches_per_epoch
    decay = config.final_learning_rate / config.learning_rate
    return optax.radam(optax.exponential_decay(config.learning_rate, updates, decay))


def epochs(config: DynamicsConfig, series: Float[Array, "T N"], state: TrainingState, key: Array) -> TrainingState:
    """``evaluate_every`` epochs of one seed. Batches depend on the seed and the number of the update alone."""
    model, optim = config.model.make(), optimizer(config)

    def loss(params: Any, batch: Array) -> Array:
        predictions = jnp.asarray(model.apply(params, batch, config.interval, config.strength))
        return jnp.mean((predictions - batch[:, 1:]) ** 2)

    def update(carry: tuple[Any, Any], number: Array) -> tuple[tuple[Any, Any], None]:
        params, memory = carry
        gradient = jax.grad(loss)(params, windows(config, series, jax.random.fold_in(key, number)))
        change, memory = optim.update(gradient, memory, params)
        return (optax.apply_updates(params, change), memory), None

    count = config.evaluate_every * config.batches_per_epoch
    numbers = 1 + state.epoch * config.batches_per_epoch + jnp.arange(count)
    (params, memory), _ = jax.lax.scan(update, (state.params, state.optimizer), numbers)
    return state._replace(params=params, optimizer=memory, epoch=state.epoch + config.evaluate_every)


def windows(config: DynamicsConfig, series: Float[Array, "T N"], key: Array) -> Float[Array, "B W N"]:
    """A batch of noisy windows of ``window + 1`` rows."""
    starts_key, noise_key = jax.random.split(key)
    starts = jax.random.randint(starts_key, (config.batch_size,), 0, len(series) - config.window)
    cut = jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(series, start, config.window + 1))(starts)
    return cut + config.noise * jax.random.normal(noise_key, cut.shape, cut.dtype)


def free_run(config: DynamicsConfig, params: Any, first: Float[Array, "1 N"]) -> Float[Array, "S T M"]:
    """The states that every seed's `params` generate after `first`, without the discarded ones."""
    steps = config.discard + config.free_run
    return _free_run(config.model, steps, params, first)[:, config.discard :]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _free_run(model: ALRNNConfig, steps: int, params: Any, first: Array) -> Array:
    return jax.vmap(lambda p: model.make().apply(p, first, steps, method="free_run")[0])(params)


def observed(config: DynamicsConfig, params: Any, first: Float[Array, "1 N"]) -> Float[Array, "S T N"]:
    """What `free_run` shows."""
    return free_run(config, params, first)[..., : config.model.observed]


def keep_best(state: TrainingState, scores: Float[np.ndarray, "S"]) -> TrainingState:
    """`state`, whose newest params become the best where they score less; NaN is never less."""
    better = jnp.asarray(scores) < state.score

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    best = jax.tree.map(choose, state.params, state.best)
    return state._replace(best=best, score=jnp.where(better, scores, state.score))


def save(state: TrainingState, config: DynamicsConfig, file: Path) -> None:
    """Write `state` as a whole or not at all."""
    partial = file.with_suffix(".partial.npz")
    arrays = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(state))}
    arrays["config"] = np.asarray(to_json(config))
    np.savez(partial, allow_pickle=False, **arrays)
    os.replace(partial, file)


def load(state: TrainingState, config: DynamicsConfig, file: Path) -> TrainingState:
    """What `save` wrote, or `state` if there is nothing.

    Raises:
      UserError: the file was written with another config.
    """
    if not file.is_file():
        return state
    with np.load(file, allow_pickle=False) as saved:
        if str(saved["config"]) != to_json(config):
            raise UserError(f"{file} belongs to another config; give an empty directory")
        leaves = [jnp.asarray(saved[str(number)]) for number in range(len(jax.tree.leaves(state)))]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)
