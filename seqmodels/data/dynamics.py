"""Chaotic flows, integrated by ourselves: one long standardised series per split.

Lorenz's 1963 and Rössler's 1976 equations; nothing is downloaded, and there is no licence to respect. A config always
makes the same numbers. There is no iterator to save: whoever trains draws windows of the series by the number of the
update (`seqmodels.train.dynamics`), so that a run resumes by that number alone.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from seqmodels.data.base import SPLITS
from seqmodels.errors import UserError, suggest

Point = tuple[float, float, float]
"""Floats, or arrays of one shape."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(abc.ABC):
    """A system of three ordinary differential equations, sampled every `dt` after the transient is over.

    Train, valid and test are consecutive stretches of one trajectory, `gap` rows apart. Every channel is standardised
    by the mean and the deviation of the train split.
    """

    dt: float
    """Time between two rows."""
    substeps: int
    """Steps of the integrator per row."""
    start: Point
    """Where the transient begins."""
    train_rows: int = 50_000
    valid_rows: int = 50_000
    test_rows: int = 50_000
    transient: int = 5_000
    """Rows that are thrown away."""
    gap: int = 1_000
    """Rows between two splits."""

    def __post_init__(self) -> None:
        if self.dt <= 0 or self.substeps < 1:
            raise UserError(f"dt={self.dt}, substeps={self.substeps}; use a positive step and at least one substep")
        for name in ("train_rows", "valid_rows", "test_rows"):
            if getattr(self, name) < 2:
                raise UserError(f"{name}={getattr(self, name)}; use at least 2")
        for name in ("transient", "gap"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} rows; use 0 or more")

    @abc.abstractmethod
    def velocity(self, x: float, y: float, z: float) -> Point:
        """The right-hand side of the equations."""

    @abc.abstractmethod
    def centres(self) -> Float[np.ndarray, "E 3"]:
        """The equilibria around which the attractor turns, in the units of the equations."""

    def series(self, split: str) -> Float[np.ndarray, "T 3"]:
        """The rows of a split, float64, standardised.

        Raises:
          UserError: `split` is not train, valid or test, or the integration overflows.
        """
        if split not in SPLITS:
            raise UserError(f"split: {split!r} is not one of {', '.join(SPLITS)}{suggest(split, SPLITS)}")
        begin = self.transient
        for earlier in SPLITS[: SPLITS.index(split)]:
            begin += getattr(self, f"{earlier}_rows") + self.gap
        return self.standardised(_trajectory(self)[begin : begin + getattr(self, f"{split}_rows")])

    def standardised(self, points: Float[np.ndarray, "T 3"]) -> Float[np.ndarray, "T 3"]:
        """`points` in the units of the series."""
        train = _trajectory(self)[self.transient : self.transient + self.train_rows]
        return (points - train.mean(0)) / train.std(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lorenz63(Flow):
    """``x' = sigma (y - x), y' = x (rho - z) - y, z' = x y - beta z`` (Lorenz 1963)."""

    dt: float = 0.01
    substeps: int = 2
    start: Point = (1.0, 1.0, 20.0)
    sigma: float = 10.0
    rho: float = 28.0
    beta: float = 8 / 3

    def velocity(self, x: float, y: float, z: float) -> Point:
        return self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z

    def centres(self) -> Float[np.ndarray, "E 3"]:
        """Of the two lobes."""
        r = np.sqrt(self.beta * (self.rho - 1))
        return np.array([[r, r, self.rho - 1], [-r, -r, self.rho - 1]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rossler(Flow):
    """``x' = -y - z, y' = x + a y, z' = b + z (x - c)`` (Rössler 1976)."""

    dt: float = 0.08
    substeps: int = 4
    start: Point = (1.0, 1.0, 1.0)
    a: float = 0.2
    b: float = 0.2
    c: float = 5.7

    def velocity(self, x: float, y: float, z: float) -> Point:
        return -y - z, x + self.a * y, self.b + z * (x - self.c)

    def centres(self) -> Float[np.ndarray, "E 3"]:
        """Of the spiral; the other equilibrium is far from the attractor."""
        z = (self.c - np.sqrt(self.c**2 - 4 * self.a * self.b)) / (2 * self.a)
        return np.array([[self.a * z, -z, z]])


@functools.lru_cache(maxsize=4)
def _trajectory(flow: Flow) -> np.ndarray:
    """All rows from the start of the transient to the end of the test split, in the units of the equations."""
    rows = flow.transient + flow.train_rows + flow.valid_rows + flow.test_rows + 2 * flow.gap
    found = integrate(flow.velocity, flow.start, flow.dt, rows - 1, flow.substeps)
    if not np.isfinite(found).all():
        raise UserError(f"dt={flow.dt}, substeps={flow.substeps}: the trajectory overflows; use a smaller step")
    found.setflags(write=False)
    return found


def integrate(
    velocity: Callable[..., Point], start: Point, dt: float, steps: int, substeps: int = 1
) -> Float[np.ndarray, "T 3 ..."]:
    """The classical Runge-Kutta method of fourth order, in float64.

    Args:
      velocity: of three numbers (or arrays of one shape), their three derivatives in time.
      start: the first row.
      dt: time between two rows.
      steps: rows after the first.
      substeps: steps of the integrator per row, each ``dt / substeps`` long.

    Returns:
      ``[steps + 1, 3]``.
    """
    x, y, z = start
    found = np.empty((steps + 1, 3, *np.shape(x)))
    found[0] = start
    h = dt / substeps
    for row in range(1, steps + 1):
        for _ in range(substeps):  # plain floats are several times as fast as arrays of three
            a, b, c = velocity(x, y, z)
            d, e, f = velocity(x + h / 2 * a, y + h / 2 * b, z + h / 2 * c)
            p, q, r = velocity(x + h / 2 * d, y + h / 2 * e, z + h / 2 * f)
            u, v, w = velocity(x + h * p, y + h * q, z + h * r)
            x, y, z = (
                x + h / 6 * (a + 2 * d + 2 * p + u),
                y + h / 6 * (b + 2 * e + 2 * q + v),
                z + h / 6 * (c + 2 * f + 2 * r + w),
            )
        found[row] = x, y, z
    return found
