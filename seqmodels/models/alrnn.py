"""The almost-linear RNN (AL-RNN, arXiv:2410.14240): a recurrent map with as few rectified units as possible.

``z_t = A * z_{t-1} + W phi(z_{t-1}) + h`` with a diagonal ``A``, where ``phi`` is the identity but for a ReLU on the
last P of M units. So the map is affine on each of at most ``2 ** P`` regions, and `seqmodels.models.alrnn_analysis`
computes its fixed points, cycles and symbols in closed form. The first N units are the observation itself.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.ops import checks


@dataclasses.dataclass(frozen=True)
class ALRNNConfig:
    """Sizes of an AL-RNN; ``M + M**2 + M + (M - N) N`` parameters."""

    units: int = 20
    """M, the size of the state."""
    rectified: int = 2
    """P, how many of the units (the last ones) are rectified; 0 makes the map affine, M a piecewise-linear RNN."""
    observed: int = 3
    """N, how many of the units (the first ones) are the observation."""

    def __post_init__(self) -> None:
        if not 1 <= self.observed <= self.units:
            raise UserError(f"observed={self.observed} of units={self.units}; use 1 <= observed <= units")
        if not 0 <= self.rectified <= self.units:
            raise UserError(f"rectified={self.rectified} of units={self.units}; use 0 <= rectified <= units")

    def make(self) -> ALRNN:
        """The module; allocates nothing."""
        return ALRNN(self)


class ALRNN(nn.Module):
    """``apply(params, series, interval)`` predicts one step ahead; ``method="free_run"`` generates."""

    cfg: ALRNNConfig

    def setup(self) -> None:
        cfg = self.cfg
        hidden = cfg.units - cfg.observed
        self.A = self.param("A", decaying, (cfg.units,))
        self.W = self.param("W", nn.initializers.normal(0.01), (cfg.units, cfg.units))
        self.h = self.param("h", nn.initializers.zeros, (cfg.units,))
        self.L = self.param("L", nn.initializers.glorot_uniform() if hidden else empty, (hidden, cfg.observed))

    def initial_state(self, x: Float[Array, "B N"]) -> Float[Array, "B M"]:
        """``[x; L x]``: the observed units are the observation, and the others are read from it."""
        return jnp.concatenate([x, x @ self.L.T], -1)

    def step(self, z: Float[Array, "B M"]) -> Float[Array, "B M"]:
        """The map."""
        linear = self.cfg.units - self.cfg.rectified
        phi = jnp.concatenate([z[:, :linear], jax.nn.relu(z[:, linear:])], -1)
        return self.A * z + phi @ self.W.T + self.h

    def __call__(
        self, series: Float[Array, "B T N"], interval: int | None = None, strength: float = 1.0
    ) -> Float[Array, "B T-1 N"]:
        """Predictions of ``series[:, 1:]``, each made before its own target is seen, under teacher forcing.

        After every `interval`-th step the observed units are drawn to the data, ``z[:N] <- strength * x +
        (1 - strength) * z[:N]``, and the others are left alone. With `strength` 1 this is sparse teacher forcing, and
        no gradient flows through what is replaced; with `interval` 1 and a smaller `strength` it is generalised
        teacher forcing.

        Args:
          series: data; its first row gives the initial state.
          interval: steps between two forcings; ``None`` forces never.
          strength: in [0, 1].

        Raises:
          ValueError: an argument out of range, or `series` of another shape or dtype.
        """
        cfg = self.cfg
        checks.match("series", series, "B T N", {"N": cfg.observed})
        checks.floating(series=series)
        if interval is not None and interval < 1:
            raise ValueError(f"interval={interval}, expected at least 1 or None; None never forces")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength}, expected a number in [0, 1]")
        if series.shape[1] < 2:
            raise ValueError(f"series has {series.shape[1]} rows, expected at least 2 so that there is one to predict")
        targets = jnp.swapaxes(series[:, 1:], 0, 1)
        steps = np.arange(1, len(targets) + 1)
        pull = strength * (steps % interval == 0) if interval else np.zeros(len(steps))

        def advance(z: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            target, alpha = row
            z = self.step(z)
            prediction = z[:, : cfg.observed]
            forced = alpha * target + (1 - alpha) * prediction
            return jnp.concatenate([forced, z[:, cfg.observed :]], -1), prediction

        rows = (targets, jnp.asarray(pull, series.dtype))
        _, predictions = jax.lax.scan(advance, self.initial_state(series[:, 0]), rows)
        return jnp.swapaxes(predictions, 0, 1)

    def free_run(self, x: Float[Array, "B N"], steps: int) -> Float[Array, "B steps M"]:
        """The `steps` states after ``initial_state(x)``; ``[:, :, :N]`` of them is what is observed."""

        def advance(z: Array, _: None) -> tuple[Array, Array]:
            z = self.step(z)
            return z, z

        _, states = jax.lax.scan(advance, self.initial_state(x), None, length=steps)
        return jnp.swapaxes(states, 0, 1)


def decaying(key: Array, shape: tuple[int], dtype: jnp.dtype = jnp.float32) -> Float[Array, "M"]:
    """The diagonal of ``(R^T R / M + I) / lambda_max`` for a standard normal R: entries in (0, 1)."""
    (units,) = shape
    r = jax.random.normal(key, (units, units), dtype)
    positive = r.T @ r / units + jnp.eye(units, dtype=dtype)
    return jnp.diag(positive) / jnp.linalg.eigvalsh(positive)[-1]


def empty(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
    """For a matrix without rows, which Glorot's rule does not know."""
    return jnp.zeros(shape, dtype)
