"""The jobs of the AL-RNN table: train all seeds of an entry and measure what they reconstruct, or the references."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from eval.dynamics import spectral_distance, state_space_divergence
from seqmodels.data.dynamics import Flow
from seqmodels.models.alrnn_analysis import Map, fixed_points, lyapunov_exponents, symbols
from seqmodels.train.dynamics import DynamicsConfig, free_run, train

VISITED = 1e-3
"""A region counts if at least this share of a free run lies in it."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Train, keep what scores best on the valid split, and measure that on the test split.

    Metrics of every seed are named ``dynamics/NAME@SEED``, and ``dynamics/NAME`` is their median:

    - ``d_stsp``, ``d_h``: of a free run against the test split;
    - ``prediction_error``: mean square error `ahead` steps after a row of the test split;
    - ``regions``: how many the free run visits, `VISITED` or more of its time; ``share_of_three``: of its time in the
      three that it visits most;
    - ``centre_distance``: from the farthest centre of the attractor to the nearest real fixed point of a visited
      region, in standard deviations of the data;
    - ``lyapunov``: the largest exponent, per unit of time.
    """

    training: DynamicsConfig
    bins: int = 30
    smoothing: float = 20.0
    ahead: int = 20
    exponent_steps: int = 10_000

    def run(self, directory: Path) -> dict[str, float]:
        cfg, data = self.training, self.training.data
        valid, test = data.series("valid"), data.series("test")
        state = train(cfg, lambda rows: state_space_divergence(valid, rows, self.bins), directory)
        states = np.asarray(free_run(cfg, state.best, jnp.asarray(test[:1], jnp.float32)), np.float64)
        errors = prediction_errors(cfg, state.best, test, self.ahead)
        found: dict[str, list[float]] = {}
        for number, run in enumerate(states):
            params = jax.tree.map(lambda leaf, number=number: leaf[number], state.best)
            system = Map.of(params, cfg.model.rectified)
            metrics = self.measure(system, run, test) | {"prediction_error": errors[number]}
            for name, value in metrics.items():
                found.setdefault(name, []).append(value)
        single = {f"dynamics/{n}@{s}": v for n, values in found.items() for s, v in zip(cfg.seeds, values)}
        return single | {f"dynamics/{name}": median(values) for name, values in found.items()}

    def measure(
        self, system: Map, states: Float[np.ndarray, "T M"], truth: Float[np.ndarray, "U N"]
    ) -> dict[str, float]:
        """The metrics of one seed's free run, but for the prediction error."""
        cfg = self.training
        run = states[:, : cfg.model.observed]
        sequence = symbols(states, cfg.model.rectified)
        visited = regions(sequence)
        finite = bool(np.isfinite(states).all())
        exponents = lyapunov_exponents(system, states[0], self.exponent_steps) if finite else np.full(1, np.nan)
        return {
            "d_stsp": state_space_divergence(truth, run, self.bins),
            "d_h": spectral_distance(truth[: len(run)], run, self.smoothing),
            "regions": float(len(visited)) if finite else np.nan,
            "share_of_three": share(sequence, 3) if finite else np.nan,
            "centre_distance": centre_distance(system, visited, cfg.data),
            "lyapunov": float(exponents[0]) / cfg.data.dt,
        }


@dataclasses.dataclass(frozen=True)
class References:
    """What a perfect and a blind generator would score: as many rows of the train split, and a Gaussian cloud.

    The cloud has the covariance of the data but knows nothing else of it.
    """

    data: Flow
    rows: int
    bins: int = 30
    smoothing: float = 20.0

    def run(self, directory: Path) -> dict[str, float]:
        truth = self.data.series("test")
        sample = self.data.series("train")[: self.rows]
        random = np.random.default_rng(0)
        cloud = random.multivariate_normal(truth.mean(0), np.cov(truth.T), len(sample))
        return {
            f"reference/{measure}_{name}": value
            for name, rows in (("sample", sample), ("cloud", cloud))
            for measure, value in (
                ("d_stsp", state_space_divergence(truth, rows, self.bins)),
                ("d_h", spectral_distance(truth[: len(rows)], rows, self.smoothing)),
            )
        }


def prediction_errors(cfg: DynamicsConfig, params: object, truth: Float[np.ndarray, "T N"], ahead: int) -> list[float]:
    """Of every seed: mean square error `ahead` steps after evenly spaced rows of `truth`."""
    starts = np.linspace(0, len(truth) - 1 - ahead, min(1_000, len(truth) - ahead)).astype(int)
    first, later = jnp.asarray(truth[starts], jnp.float32), truth[starts + ahead]
    model = cfg.model.make()

    @jax.jit
    def predict(params: object) -> jax.Array:
        states = jax.vmap(lambda p: jnp.asarray(model.apply(p, first, ahead, method="free_run")))(params)
        return states[:, :, -1, : cfg.model.observed]

    return [float(np.mean((run - later) ** 2)) for run in np.asarray(predict(params), np.float64)]


def regions(sequence: Int[np.ndarray, "T"]) -> list[int]:
    """The symbols that a run visits `VISITED` or more of its time."""
    found, counts = np.unique(sequence, return_counts=True)
    return [int(symbol) for symbol, count in zip(found, counts) if count >= VISITED * len(sequence)]


def share(sequence: Int[np.ndarray, "T"], count: int) -> float:
    """Of the time that is spent in the `count` most visited regions."""
    return float(np.sort(np.bincount(sequence))[-count:].sum() / len(sequence))


def centre_distance(system: Map, visited: list[int], data: Flow) -> float:
    """From a centre of the attractor to the nearest real fixed point of a visited region: the largest; or infinite."""
    points = [cycle.points[0] for cycle in fixed_points(system, visited) if cycle.real]
    centres = data.standardised(data.centres())
    if not points:
        return float("inf")
    apart = np.stack(points)[None, :, : centres.shape[1]] - centres[:, None]
    return float(np.linalg.norm(apart, axis=-1).min(1).max())


def median(values: list[float]) -> float:
    """The median; one that is not finite counts as larger than all others."""
    ordered = sorted(value if np.isfinite(value) else np.inf for value in values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
