"""What a trained AL-RNN does, in closed form: symbols, fixed points, cycles, and how fast neighbours part.

In the region with signs ``d`` of the rectified units the map is ``z -> J_d z + h`` with ``J_d = diag(A) + W D_d``,
where ``D_d`` keeps the linear units and the rectified ones that are positive (arXiv:2410.14240). A region's symbol is
``d`` read as a binary number, the first rectified unit being the most significant digit: with P = 2, symbol 1 is "01".
Everything here is numpy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Complex, Float, Int


class Map(NamedTuple):
    """The map of an AL-RNN."""

    A: Float[np.ndarray, "M"]
    W: Float[np.ndarray, "M M"]
    h: Float[np.ndarray, "M"]
    rectified: int  # P

    @classmethod
    def of(cls, params: Mapping[str, Any], rectified: int) -> Map:
        """From the variables of `ALRNN.init`, ``{"params": {"A", "W", "h", ...}}``."""
        A, W, h = (np.asarray(params["params"][name], np.float64) for name in ("A", "W", "h"))
        return cls(A, W, h, rectified)

    def step(self, z: Float[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
        """The next state."""
        return self.jacobian(int(symbols(z[None], self.rectified)[0])) @ z + self.h

    def jacobian(self, symbol: int) -> Float[np.ndarray, "M M"]:
        """``J_d`` of a region."""
        keep = np.ones(len(self.A))
        keep[len(keep) - self.rectified :] = signs(symbol, self.rectified)
        return np.diag(self.A) + self.W * keep


class Cycle(NamedTuple):
    """A periodic orbit; of one point, a fixed point."""

    symbols: tuple[int, ...]  # of the regions whose maps are composed
    points: Float[np.ndarray, "k M"]
    real: bool  # whether every point lies in the region of its symbol, so that the map has this orbit
    multipliers: Complex[np.ndarray, "M"]  # eigenvalues of the product of Jacobians

    @property
    def stable(self) -> bool:
        """Whether neighbours are drawn to it."""
        return bool(np.abs(self.multipliers).max() < 1)


def signs(symbol: int, rectified: int) -> Bool[np.ndarray, "P"]:
    """Which of the rectified units are positive in a region.

    Raises:
      ValueError: there is no such region.
    """
    if not 0 <= symbol < 2**rectified:
        raise ValueError(f"symbol={symbol}, expected 0 <= symbol < 2**{rectified}")
    return (symbol >> np.arange(rectified)[::-1]) % 2 == 1


def symbols(states: Float[np.ndarray, "T M"], rectified: int) -> Int[np.ndarray, "T"]:
    """The symbol of every state."""
    positive = states[:, states.shape[1] - rectified :] > 0
    return positive @ (1 << np.arange(rectified, dtype=np.int64)[::-1])


def transitions(sequence: Int[np.ndarray, "T"], rectified: int) -> Int[np.ndarray, "R R"]:
    """How often symbol j followed symbol i, ``[i, j]``: the weights of the transition graph."""
    regions = 2**rectified
    pairs = np.asarray(sequence[:-1], np.int64) * regions + sequence[1:]
    return np.bincount(pairs, minlength=regions**2).reshape(regions, regions)


def topological_entropy(graph: Int[np.ndarray, "R R"]) -> float:
    """Growth of the logarithm of the number of words that the graph allows, in nats per step; 0 without a cycle."""
    return math.log(max(1.0, float(np.abs(np.linalg.eigvals(graph > 0)).max())))


def cycle(system: Map, word: Sequence[int]) -> Cycle | None:
    """The orbit of period ``len(word)`` that visits the regions of `word` in turn, whether the map has it or not.

    ``None`` if there is not exactly one, because the composed map has an eigenvalue 1.

    Raises:
      ValueError: an empty word, or a symbol without a region.
    """
    if not word:
        raise ValueError("word is empty, expected at least one symbol")
    jacobians = [system.jacobian(symbol) for symbol in word]
    product, offset = np.eye(len(system.h)), np.zeros(len(system.h))
    for jacobian in jacobians:
        product, offset = jacobian @ product, jacobian @ offset + system.h
    try:
        point = np.linalg.solve(np.eye(len(offset)) - product, offset)
    except np.linalg.LinAlgError:
        return None
    points = [point]
    for jacobian in jacobians[:-1]:
        points.append(jacobian @ points[-1] + system.h)
    stacked = np.stack(points)
    real = bool((symbols(stacked, system.rectified) == np.asarray(word)).all())
    return Cycle(tuple(word), stacked, real, np.linalg.eigvals(product).astype(complex))


def fixed_points(system: Map, regions: Sequence[int] | None = None) -> list[Cycle]:
    """The fixed point of every region (or of some), real ones and virtual ones."""
    chosen = range(2**system.rectified) if regions is None else regions
    return [found for symbol in chosen if (found := cycle(system, (symbol,))) is not None]


def lyapunov_exponents(
    system: Map, start: Float[np.ndarray, "M"], steps: int, discard: int = 1_000
) -> Float[np.ndarray, "M"]:
    """All exponents, largest first, in nats per step, by QR of the Jacobians along an orbit.

    Args:
      system: the map.
      start: where the orbit begins.
      steps: over which is averaged.
      discard: steps before them, during which orbit and frame settle.
    """
    z, frame = start, np.eye(len(start))
    total = np.zeros(len(start))
    for step in range(discard + steps):
        frame, r = np.linalg.qr(system.jacobian(int(symbols(z[None], system.rectified)[0])) @ frame)
        z = system.step(z)
        if step >= discard:
            total += np.log(np.abs(np.diag(r)) + np.finfo(float).tiny)
    return np.sort(total / steps)[::-1]
