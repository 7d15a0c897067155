"""Step sizes from theory: how many samples back a state should reach. How to Train Your HiPPO, arXiv 2206.12037."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key, UInt32

from seqmodels.axes import Array
from seqmodels.ops.hippo.measures import Measure, as_measure


def timescale(measure: str | Measure) -> float:
    """Mean age of what a measure remembers, in its own time; infinite for ``lagt``, whose weight is flat."""
    measure = as_measure(measure)
    if measure.name == "tlagt":
        return 1 / measure.parameters["beta"]
    if measure.name == "glagt":
        return (1 - measure.parameters["alpha"]) / measure.parameters["beta"]
    if measure.name in ("fourier_decay", "fourier_diag"):
        return 2.0
    if math.isfinite(measure.window):
        return measure.window / 2
    return math.inf if measure.name == "lagt" else 1.0


def step_for_lag(measure: str | Measure, lag: float) -> float:
    """Step size that suits a dependency `lag` samples back.

    A window measure gets a window of just that length (a shorter one has forgotten it, a longer one wastes
    resolution); the others get a mean age of `lag`.

    Raises:
      ValueError: a `lag` that is not positive, or the flat measure ``lagt``, for which theory names no step.
    """
    measure = as_measure(measure)
    if not lag > 0:
        raise ValueError(f"lag={lag!r}, expected a positive number of samples")
    if measure.name in ("legt", "lmu", "fourier", "fourier2"):
        return measure.window / lag
    if math.isinf(timescale(measure)):
        raise ValueError(f"measure {measure.name!r} weighs all lags alike, expected one with a time scale; use 'glagt'")
    return timescale(measure) / lag


def log_uniform_steps(
    key: Key[Array, ""] | UInt32[Array, "2"],
    shape: tuple[int, ...],
    *,
    shortest: float = 10.0,
    longest: float = 1000.0,
    dtype: Any = jnp.float32,
) -> Float[Array, "..."]:
    """Random step sizes whose kernels last from `shortest` to `longest` samples, uniform in the logarithm.

    A kernel of a measure with time scale 1 lasts about ``1 / dt`` samples, so ``dt`` lies in
    ``[1/longest, 1/shortest]``; the defaults give the usual ``[0.001, 0.1]``.

    Raises:
      ValueError: unless ``0 < shortest <= longest``.
    """
    if not 0 < shortest <= longest:
        raise ValueError(f"shortest={shortest}, longest={longest}, expected 0 < shortest <= longest")
    return jnp.exp(jax.random.uniform(key, shape, dtype, -math.log(longest), -math.log(shortest)))
