"""What this machine can do at most: a large matrix product, and a large copy."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.measure import interleave

SIZES = {"cpu": (2048, 2**27)}  # platform -> rows of the matrices, bytes of the copy
LARGE = (8192, 2**30)


class Ceilings(NamedTuple):
    """Measured peaks."""

    flops: float  # FLOP/s of a square matrix product
    bytes: float  # bytes/s of a copy, reads and writes both counted

    def bound(self, flops: float, moved: float) -> float:
        """The most FLOP/s that the roofline allows for work of `flops` that must move `moved` bytes."""
        return min(self.flops, self.bytes * flops / moved)


@functools.cache
def measure(dtype: Any, size: int | None = None) -> Ceilings:
    """Measure both ceilings for `dtype` on the default device; `size` sets the rows of the matrices (for tests)."""
    rows, copied = SIZES.get(jax.default_backend(), LARGE)
    if size is not None:
        rows, copied = size, size * 1024
    matrix = jnp.ones((rows, rows), dtype)
    vector = jnp.ones(copied // jnp.dtype(dtype).itemsize, dtype)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: -x)
    programs = {"product": lambda: product(matrix), "copy": lambda: copy(vector)}
    seconds = interleave(programs, rounds=7, summary=min)
    return Ceilings(2.0 * rows**3 / seconds["product"], 2.0 * copied / seconds["copy"])
