"""Memory fidelity: how well tokens survive along time within a layer, and layers within deeper ones.

MemMamba (arXiv:2510.03279) names an expected token memory fidelity (ETMF) and an expected cross-layer memory fidelity
(ECLMF) and their formulas are not known to us. What is measured here is INFERRED, our own, and must not be compared
with the paper's numbers:

* ``ETMF(Δ) = E_t cos(e_t, ê_t)``: a linear probe predicts the embedding of token t from what the layer gives out at
  t + Δ;
* ``ECLMF(l, l + G) = 1 - E|h_l - R h_{l+G}|² / E|h_l - mean|²``: the share of a layer's variance that a linear map
  reconstructs from a deeper layer.

Probes are ridge regressions, fitted on some sequences and scored on others. 1 is perfect; ECLMF is 0 for a layer that
tells nothing. Padding counts nowhere, and no distance reaches from one document into another.
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


class Tokens:
    """The real tokens of some sequences, one after the other, without padding."""

    def __init__(self, a: np.ndarray, b: np.ndarray, segment_ids: np.ndarray | None):
        if a.ndim != 3 or a.shape[:2] != b.shape[:2] or a.shape[0] < 2:
            raise ValueError(f"shapes {a.shape} and {b.shape}, expected [B,T,·] twice with at least 2 sequences")
        ids = np.ones(a.shape[:2], np.int64) if segment_ids is None else np.asarray(segment_ids)
        if ids.shape != a.shape[:2]:
            raise ValueError(f"segment_ids has shape {ids.shape}, expected {a.shape[:2]}, that of the sequences")
        self.real = ids != 0
        _, row = np.unique(np.nonzero(self.real)[0], return_inverse=True)  # empty sequences have no number
        count = int(row.max(initial=-1)) + 1
        if count < 2:
            raise ValueError(f"segment_ids has tokens in {count} sequences, expected at least 2; give more sequences")
        self.held = row >= count - max(1, round(HELD_OUT * count))
        """Whether a token's sequence is one that probes are scored on."""
        place = np.stack([row, ids[self.real]])
        begins = np.any(place[:, 1:] != place[:, :-1], axis=0)
        self.document = np.concatenate([[0], np.cumsum(begins)])

    def apart(self, lag: int) -> np.ndarray:
        """The tokens whose document has one `lag` tokens later."""
        return np.flatnonzero(self.document[: max(len(self.document) - lag, 0)] == self.document[lag:])

    @property
    def longest(self) -> int:
        """Tokens of the longest document, of those that probes are fitted on or of those they are scored on: the
        smaller number."""
        return min(int(np.bincount(self.document[part]).max()) for part in (self.held, ~self.held))


def token_fidelity(
    embeddings: np.ndarray,
    states: np.ndarray,
    lags: Sequence[int],
    *,
    segment_ids: np.ndarray | None = None,
    penalty: float = 1e-4,
) -> dict[int, float]:
    """ETMF by lag.

    Args:
      embeddings: ``[B,T,D]``, what stands for a token.
      states: ``[B,T,F]``, what a layer or mixer gives out.
      lags: in tokens of a document, from 0 to the length of the longest one less one.
      segment_ids: ``[B,T]``, 0 is padding, another id another document; ``None``: every sequence is one document.
      penalty: of the ridge, relative to the mean variance of the inputs.

    Raises:
      ValueError: fewer than two sequences, or a lag outside of them.
    """
    tokens = Tokens(embeddings, states, segment_ids)
    wanted, given = embeddings[tokens.real], states[tokens.real]
    found = {}
    for lag in lags:
        if not 0 <= lag < tokens.longest:
            last = tokens.longest - 1
            raise ValueError(f"lag={lag} does not fit sequences of {tokens.longest} tokens; give 0 to {last}")
        at = tokens.apart(lag)
        fit, held = at[~tokens.held[at]], at[tokens.held[at]]
        e, guess = wanted[held].astype(np.float64), Probe(given[fit + lag], wanted[fit], penalty)(given[held + lag])
        norms = np.linalg.norm(e, axis=-1) * np.linalg.norm(guess, axis=-1)
        found[lag] = float(np.mean(np.sum(e * guess, axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)))
    return found


def layer_fidelity(
    shallow: np.ndarray, deep: np.ndarray, *, segment_ids: np.ndarray | None = None, penalty: float = 1e-4
) -> float:
    """ECLMF of ``shallow [B,T,D]`` in ``deep [B,T,F]``; `segment_ids` and `penalty` as for `token_fidelity`.

    Raises:
      ValueError: fewer than two sequences, or shapes that do not fit.
    """
    tokens = Tokens(shallow, deep, segment_ids)
    wanted, given = shallow[tokens.real].astype(np.float64), deep[tokens.real]
    probe = Probe(given[~tokens.held], wanted[~tokens.held], penalty)
    wanted = wanted[tokens.held]
    lost = np.mean((wanted - probe(given[tokens.held])) ** 2)
    return float(1.0 - lost / np.mean((wanted - wanted.mean(axis=0)) ** 2))


def layers(model: LanguageModel, params: Any, tokens: Array, segment_ids: Array | None = None) -> list[np.ndarray]:
    """The embedded tokens and the residual stream after every layer, ``[B,T,D]`` each."""
    return [np.asarray(layer, np.float32) for layer in _layers(model, params, tokens, segment_ids)]


@functools.partial(jax.jit, static_argnames="model")
def _layers(model: LanguageModel, params: Any, tokens: Array, segment_ids: Array | None) -> list[Array]:
    output: Any = model.apply(
        params,
        tokens,
        segment_ids=segment_ids,
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
    """Lags Δ in tokens; those that exceed the documents are left out."""
    split: str = "test"
    """Of the data."""
    batch_size: int = 16
    """Sequences of a batch, at least 2."""
    limit: int = 4
    """Batches at most; 0 for all."""

    def measure(self, model: LanguageModel, params: Any, data: Dataset) -> dict[str, float]:
        stream = list(itertools.islice(batches(data, self.split, self.batch_size), self.limit or None))
        if not stream:
            raise UserError(f"--fidelity.split {self.split} of {type(data).__name__} has no sequences")
        seen = [
            layers(model, params, jnp.asarray(batch["tokens"]), jnp.asarray(batch["segment_ids"])) for batch in stream
        ]
        embedded, *hidden = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        ids = np.concatenate([batch["segment_ids"] for batch in stream])
        longest = Tokens(embedded, embedded, ids).longest
        lags = [lag for lag in self.lags if lag < longest]
        by_layer = [token_fidelity(embedded, h, lags, segment_ids=ids) for h in hidden]
        results = {f"token@{lag}": float(np.mean([layer[lag] for layer in by_layer])) for lag in lags}
        for gap in range(1, len(hidden)):
            pairs = zip(hidden, hidden[gap:], strict=False)
            results[f"layer@{gap}"] = float(np.mean([layer_fidelity(a, b, segment_ids=ids) for a, b in pairs]))
        return results

    def plot(self, results: dict[str, float], axes: Any) -> None:
        for what, label in (("token", "tokens, by lag"), ("layer", "layers, by gap")):
            curve = self.curve(results, what)
            if curve:
                axes.plot([int(value) for value in curve], list(curve.values()), marker="o", label=label)
        axes.set(xlabel="distance", ylabel="fidelity", xscale="symlog")
        axes.legend()
