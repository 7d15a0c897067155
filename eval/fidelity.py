"""Memory fidelity: how well tokens survive along time within a layer, and layers within deeper ones.

MemMamba (arXiv:2510.03279) names an expected token memory fidelity (ETMF) and an expected cross-layer memory fidelity
(ECLMF) and their formulas are not known to us. What is measured here is INFERRED, our own, and must not be compared
with the paper's numbers:

* ``ETMF(Δ) = E_t cos(e_t, ê_t)``: a linear probe predicts the embedding of token t from what the layer gives out at
  t + Δ;
* ``ECLMF(l, l + G) = 1 - E|h_l - R h_{l+G}|² / E|h_l - mean|²``: the share of a layer's variance that a linear map
  reconstructs from a deeper layer.

Probes are ridge regressions, fitted on some sequences and scored on others. 1 is perfect; ECLMF is 0 for a layer that
tells nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.base import Task, batches
from seqmodels.axes import Array
from seqmodels.data.base import Dataset
from seqmodels.errors import UserError
from seqmodels.models.block import Block
from seqmodels.models.lm import LanguageModel

HELD_OUT = 0.25  # share of the sequences that probes are scored on


class Probe:
    """A ridge regression with an intercept, in float64."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, penalty: float):
        inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
        self.centre, self.offset = inputs.mean(axis=0), targets.mean(axis=0)
        x = inputs - self.centre
        scale = penalty * np.trace(x.T @ x) / x.shape[1] + np.finfo(np.float64).tiny
        self.weights = np.linalg.solve(x.T @ x + scale * np.eye(x.shape[1]), x.T @ (targets - self.offset))

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return (np.asarray(inputs, np.float64) - self.centre) @ self.weights + self.offset


def token_fidelity(
    embeddings: np.ndarray, states: np.ndarray, lags: Sequence[int], *, penalty: float = 1e-4
) -> dict[int, float]:
    """ETMF by lag.

    Args:
      embeddings: ``[B,T,D]``, what stands for a token.
      states: ``[B,T,F]``, what a layer or mixer gives out.
      lags: in tokens, 0 to T - 1.
      penalty: of the ridge, relative to the mean variance of the inputs.

    Raises:
      ValueError: fewer than two sequences, or a lag outside of them.
    """
    cut, length = _cut(embeddings, states), embeddings.shape[1]
    found = {}
    for lag in lags:
        if not 0 <= lag < length:
            raise ValueError(f"lag={lag} does not fit sequences of {length} tokens; give 0 to {length - 1}")
        e, h = embeddings[:, : length - lag], states[:, lag:]
        probe = Probe(_rows(h[:cut]), _rows(e[:cut]), penalty)
        wanted, guessed = _rows(e[cut:]).astype(np.float64), probe(_rows(h[cut:]))
        norms = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(guessed, axis=-1)
        found[lag] = float(np.mean(np.sum(wanted * guessed, axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)))
    return found


def layer_fidelity(shallow: np.ndarray, deep: np.ndarray, *, penalty: float = 1e-4) -> float:
    """ECLMF of ``shallow [B,T,D]`` in ``deep [B,T,F]``; `penalty` as for `token_fidelity`.

    Raises:
      ValueError: fewer than two sequences, or shapes that do not fit.
    """
    cut = _cut(shallow, deep)
    probe = Probe(_rows(deep[:cut]), _rows(shallow[:cut]), penalty)
    wanted = _rows(shallow[cut:]).astype(np.float64)
    lost = np.mean((wanted - probe(_rows(deep[cut:]))) ** 2)
    return float(1.0 - lost / np.mean((wanted - wanted.mean(axis=0)) ** 2))


def _cut(a: np.ndarray, b: np.ndarray) -> int:
    """How many of the sequences fit the probe."""
    if a.ndim != 3 or a.shape[:2] != b.shape[:2] or a.shape[0] < 2:
        raise ValueError(f"shapes {a.shape} and {b.shape}, expected [B,T,·] twice with at least 2 sequences")
    return a.shape[0] - max(1, round(HELD_OUT * a.shape[0]))


def _rows(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).reshape(-1, x.shape[-1])


def layers(model: LanguageModel, params: Any, tokens: Array) -> list[np.ndarray]:
    """The embedded tokens and the residual stream after every layer, ``[B,T,D]`` each."""
    return [np.asarray(layer, np.float32) for layer in _layers(model, params, tokens)]


@functools.partial(jax.jit, static_argnames="model")
def _layers(model: LanguageModel, params: Any, tokens: Array) -> list[Array]:
    output: Any = model.apply(
        params,
        tokens,
        method="hidden",
        capture_intermediates=lambda module, name: isinstance(module, Block) and name == "__call__",
        mutable=["intermediates"],
    )
    stack = output[1]["intermediates"]["backbone"]["stack"]
    period, depth = len(model.cfg.pattern), model.cfg.depth
    found = {}
    for part, first in (("periods", 0), ("tail", depth - depth % period)):
        for name, block in stack.get(part, {}).items():
            ((x, *_),) = block["__call__"]
            place = first + int(name.removeprefix("block_"))
            found |= {place + i * period: layer for i, layer in enumerate(x if part == "periods" else x[None])}
    embedded = jnp.take(params["params"]["embedding"], tokens, axis=0)
    return [embedded, *(found[i] for i in range(depth))]


@dataclasses.dataclass(frozen=True)
class Fidelity(Task):
    """Fidelity of a language model's residual stream, averaged over layers, by lag and by gap of layers."""

    lags: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64)
    """Lags Δ in tokens; those that exceed the sequences are left out."""
    split: str = "test"
    """Of the data."""
    batch_size: int = 16
    """Sequences of a batch, at least 2."""
    limit: int = 4
    """Batches at most; 0 for all."""

    def measure(self, model: LanguageModel, params: Any, data: Dataset) -> dict[str, float]:
        stream = itertools.islice(batches(data, self.split, self.batch_size), self.limit or None)
        seen = [layers(model, params, jnp.asarray(batch["tokens"])) for batch in stream]
        if not seen:
            raise UserError(f"--fidelity.split {self.split} of {type(data).__name__} has no sequences")
        embedded, *hidden = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        lags = [lag for lag in self.lags if lag < embedded.shape[1]]
        by_layer = [token_fidelity(embedded, h, lags) for h in hidden]
        results = {f"token@{lag}": float(np.mean([layer[lag] for layer in by_layer])) for lag in lags}
        for gap in range(1, len(hidden)):
            pairs = zip(hidden, hidden[gap:], strict=False)
            results[f"layer@{gap}"] = float(np.mean([layer_fidelity(low, high) for low, high in pairs]))
        return results

    def plot(self, results: dict[str, float], axes: Any) -> None:
        for what, label in (("token", "tokens, by lag"), ("layer", "layers, by gap")):
            curve = self.curve(results, what)
            if curve:
                axes.plot([int(value) for value in curve], list(curve.values()), marker="o", label=label)
        axes.set(xlabel="distance", ylabel="fidelity", xscale="symlog")
        axes.legend()
