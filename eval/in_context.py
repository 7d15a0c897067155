"""In-context linear regression by one layer of linear attention, beside what theory says the best such layer is.

A prompt holds n examples ``(x_i, y_i)`` with ``y_i = w . x_i + noise`` and a query ``(x, 0)``; a layer of linear
attention without softmax predicts the query's ``y``. Its least population loss is that of one preconditioned step of
gradient descent from zero on the prompt's least-squares problem, ``f = sum_i y_i x_i^T P x`` (arXiv:2307.03576). The
constants here are our own algebra. The layer is the package's `LinearAttention`: identity feature map, no
normalisation, one head.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.mixers import LinearAttentionConfig


class Prompts(NamedTuple):
    """Regression problems with a query each."""

    x: Float[Array, "B n+1 d"]  # the query's last
    y: Float[Array, "B n+1"]  # the query's is the target

    @property
    def tokens(self) -> Float[Array, "B n+1 d+1"]:
        """What the layer sees: the query's label is 0."""
        shown = self.y.at[:, -1].set(0)
        return jnp.concatenate([self.x, shown[..., None]], -1)


@dataclasses.dataclass(frozen=True)
class Regression:
    """The distribution of the prompts: ``x ~ N(0, diag(covariance))`` and ``w ~ N(0, diag(prior))``."""

    examples: int = 10
    noise: float = 0.25
    """Variance of the noise on every label, the query's included."""
    covariance: tuple[float, ...] = (1.0,) * 5
    prior: tuple[float, ...] = (1.0,) * 5

    def __post_init__(self) -> None:
        if self.examples < 1 or self.noise < 0:
            raise UserError(f"examples={self.examples}, noise={self.noise}; use at least one example and noise >= 0")
        if len(self.covariance) != len(self.prior) or min(*self.covariance, *self.prior) <= 0:
            raise UserError(f"covariance={self.covariance}, prior={self.prior}; use equally many positive numbers")

    @property
    def step(self) -> Float[np.ndarray, "d"]:
        """The diagonal of the best ``P``: ``prior / ((n + 1) covariance prior + tr(covariance prior) + noise)``.

        For white inputs and weights that is the step size ``1 / (n + d + 1 + noise)``.
        """
        inputs, weights = np.array(self.covariance), np.array(self.prior)
        power = inputs * weights
        return weights / ((self.examples + 1) * power + power.sum() + self.noise)

    def loss(self, examples: int | None = None) -> float:
        """Expected square error of the best step, when it meets prompts of `examples` examples (by default its own)."""
        n = self.examples if examples is None else examples
        inputs, weights, step = np.array(self.covariance), np.array(self.prior), self.step
        power = inputs * weights
        linear = n * inputs * power * step
        square = n * step**2 * inputs**2 * ((n + 1) * power + power.sum() + self.noise)
        return float(self.noise + (power - 2 * linear + square).sum())

    def sample(self, key: Array, batch: int, examples: int | None = None) -> Prompts:
        """`batch` prompts, float32."""
        n = self.examples if examples is None else examples
        x_key, w_key, noise_key = jax.random.split(key, 3)
        inputs, weights = jnp.asarray(self.covariance, jnp.float32), jnp.asarray(self.prior, jnp.float32)
        x = jax.random.normal(x_key, (batch, n + 1, len(inputs))) * jnp.sqrt(inputs)
        w = jax.random.normal(w_key, (batch, len(weights))) * jnp.sqrt(weights)
        noise = jnp.sqrt(self.noise) * jax.random.normal(noise_key, (batch, n + 1))
        return Prompts(x, jnp.einsum("bnd,bd->bn", x, w) + noise)


def descend(prompts: Prompts, step: Float[np.ndarray, "d"]) -> Float[np.ndarray, "B"]:
    """One preconditioned step of gradient descent from zero, asked at the query; in float64."""
    x, y = (np.asarray(array, np.float64) for array in prompts)
    gradient = np.einsum("bnd,bn->bd", x[:, :-1], y[:, :-1])
    return np.einsum("bd,d,bd->b", gradient, step, x[:, -1])


def ridge(prompts: Prompts, task: Regression) -> Float[np.ndarray, "B"]:
    """The posterior mean, which no predictor beats; in float64."""
    x, y = (np.asarray(array, np.float64) for array in prompts)
    x, query, y = x[:, :-1], x[:, -1], y[:, :-1]
    penalty = max(task.noise, 1e-9) * np.diag(1 / np.array(task.prior))  # the limit of no noise, where it is singular
    moments = np.einsum("bnd,bne->bde", x, x) + penalty
    weights = np.linalg.solve(moments, np.einsum("bnd,bn->bd", x, y)[..., None])[..., 0]
    return (weights * query).sum(-1)


def predict(params: Any, tokens: Float[Array, "B T d+1"]) -> Float[Array, "B"]:
    """The last feature of the layer's output at the query."""
    return layer(tokens.shape[-1]).apply(params, tokens)[0][:, -1, -1]


def layer(width: int) -> Any:
    """One head of linear attention as wide as a token."""
    config = LinearAttentionConfig(num_heads=1, feature_map="identity", normalize="none")
    return config.make(width, dtype=jnp.float32, param_dtype=jnp.float32)


def step_matrix(params: Any, dim: int) -> Float[np.ndarray, "d d"]:
    """``P`` of a layer: its prediction's mixed derivative by an example's ``y`` and ``x`` and by the query.

    The prediction is a cubic form of the prompt, so this is exact; and it does not depend on how the layer's matrices
    share the scale, which the loss leaves free.
    """

    def single(y: Array, x: Array, query: Array) -> Array:
        example, asked = jnp.append(x, y), jnp.append(query, 0.0)
        return predict(params, jnp.stack([example, asked])[None])[0]

    zero = jnp.zeros(dim)
    derivative = jax.jacrev(jax.jacrev(jax.grad(single), 1), 2)  # of a scalar, by y, then x, then the query
    return np.asarray(jax.jit(derivative)(jnp.float32(0), zero, zero), np.float64)


@dataclasses.dataclass(frozen=True)
class InContext:
    """Train the layer on fresh prompts, and hold it against the closed form on prompts that it has not seen.

    Metrics, all on the same held-out prompts where they are losses:

    - ``icl/loss``, ``icl/step_loss``, ``icl/ridge``: square error of the layer, the best step and ridge regression;
    - ``icl/closed``: the expectation of the second by the formula;
    - ``icl/function``: root mean square difference between layer and best step, over that of the best step's values;
    - ``icl/step``, ``icl/closed_step``: mean of the diagonal of the layer's and of the best ``P``;
    - ``icl/matrix``: distance between the two matrices over the norm of the latter;
    - ``icl/loss@N``, ``icl/closed@N``: with N examples in the prompt instead of the trained number.
    """

    task: Regression
    steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 2e-2
    """Of Adam during the first half."""
    averaged_rate: float = 2e-3
    """During the second half, over which the weights are averaged."""
    init_std: float = 0.1
    """Of all weights; at zero no gradient moves a product of matrices. Keys start equal to queries: from independent
    ones some runs stay at a saddle where an example's label acts as a key and only one direction is learned."""
    held_out: int = 50_000
    lengths: tuple[int, ...] = (3, 30)
    seed: int = 0

    def run(self, directory: Path) -> dict[str, float]:
        task, dim = self.task, len(self.task.covariance)
        params = self.train()
        prompts = self.prompts(0, task.examples)
        best, found = descend(prompts, task.step), self.predictions(params, prompts)
        targets = np.asarray(prompts.y[:, -1], np.float64)
        matrix, ideal = step_matrix(params, dim), np.diag(task.step)
        metrics = {
            "icl/loss": np.mean((found - targets) ** 2),
            "icl/step_loss": np.mean((best - targets) ** 2),
            "icl/ridge": np.mean((ridge(prompts, task) - targets) ** 2),
            "icl/closed": task.loss(),
            "icl/function": np.sqrt(np.mean((found - best) ** 2) / np.mean(best**2)),
            "icl/step": np.trace(matrix) / dim,
            "icl/closed_step": task.step.mean(),
            "icl/matrix": np.linalg.norm(matrix - ideal) / np.linalg.norm(ideal),
        }
        for length in self.lengths:
            other = self.prompts(length, length)
            errors = self.predictions(params, other) - np.asarray(other.y[:, -1], np.float64)
            metrics |= {f"icl/loss@{length}": np.mean(errors**2), f"icl/closed@{length}": task.loss(length)}
        return {name: float(value) for name, value in metrics.items()}

    def train(self) -> Any:
        """The trained variables of `layer`."""
        key = jax.random.key(self.seed)
        shapes = jax.eval_shape(layer(len(self.task.covariance) + 1).init, key, self.task.sample(key, 1).tokens)
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(jax.random.fold_in(key, 0), len(leaves))
        drawn = [self.init_std * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)]
        weights = jax.tree.unflatten(tree, drawn)["params"]
        return _train(self, {"params": weights | {"k_proj": weights["q_proj"]}}, key)

    def prompts(self, stream: int, examples: int) -> Prompts:
        """Held-out prompts of a stream of their own."""
        key = jax.random.fold_in(jax.random.key(self.seed + 1_000_003), stream)
        return self.task.sample(key, self.held_out, examples)

    def predictions(self, params: Any, prompts: Prompts) -> Float[np.ndarray, "B"]:
        """Of the layer, in pieces."""
        pieces = np.array_split(np.asarray(prompts.tokens), max(1, len(prompts.y) // 10_000))
        return np.concatenate([np.asarray(_predict(params, jnp.asarray(piece)), np.float64) for piece in pieces])


_predict = jax.jit(predict)


@functools.partial(jax.jit, static_argnums=0)
def _train(job: InContext, params: Any, key: Array) -> Any:
    half = job.steps // 2
    optim = optax.adam(
        optax.piecewise_constant_schedule(job.learning_rate, {half: job.averaged_rate / job.learning_rate})
    )

    def loss(params: Any, prompts: Prompts) -> Array:
        return jnp.mean((predict(params, prompts.tokens) - prompts.y[:, -1]) ** 2)

    def update(carry: tuple[Any, Any, Any], number: Array) -> tuple[tuple[Any, Any, Any], None]:
        params, memory, mean = carry
        gradient = jax.grad(loss)(params, job.task.sample(jax.random.fold_in(key, number), job.batch_size))
        change, memory = optim.update(gradient, memory, params)
        params = optax.apply_updates(params, change)
        share = jnp.where(number > half, 1 / jnp.maximum(1, number - half), 1.0)
        return (params, memory, jax.tree.map(lambda m, p: m + share * (p - m), mean, params)), None

    (_, _, mean), _ = jax.lax.scan(update, (params, optim.init(params), params), 1 + jnp.arange(job.steps))
    return mean
