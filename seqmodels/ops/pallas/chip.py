"""The few steps inside a chunk that TPU and GPU kernels must write differently; everything else in a cell is shared.

Triton knows no slices and no rotations of values, but reshapes them freely; on a TPU a rotation is one instruction and
a reshape across the rows of a register is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from seqmodels.axes import Array
from seqmodels.ops.pallas.algebra import double_inverses, iotas, odd_rows


class Chip(NamedTuple):
    """How a kind of accelerator does them."""

    swap: Callable[[Array, int], Array]  # (x [C,K], level): row i of the result is row ``i ^ 2**level`` of x
    small_inverses: Callable[[Array], Array]  # low [C,C] -> inverses of the diagonal blocks of ``I + low``, 0 elsewhere
    small: int  # log2 of the size of these blocks


def _swap_by_rotation(x: Array, level: int) -> Array:
    size, block = x.shape[0], 1 << level
    down = pltpu.roll(x, block, 0)
    return down if 2 * block == size else jnp.where(odd_rows(size, level), down, pltpu.roll(x, size - block, 0))


def _swap_by_selection(x: Array, level: int) -> Array:
    """The two halves of every pair of blocks, picked by sums with one non-zero term, which are exact."""
    size, width = x.shape
    pairs = x.reshape(size >> (level + 1), 2, 1 << level, width)
    odd = jax.lax.broadcasted_iota(jnp.int32, pairs.shape, 1) == 1
    upper, lower = (jnp.sum(jnp.where(half, pairs, 0.0), axis=1, keepdims=True) for half in (~odd, odd))
    return jnp.where(odd, upper, lower).reshape(size, width)


def _inverses_of_eight(low: Array) -> Array:
    """Blocks of 8, the sublanes of a register, by substitution for all blocks at once."""
    size = low.shape[0]
    i, j = iotas(size)
    inverse = jnp.where(i == j, 1.0, 0.0)
    for step in range(7):  # take row `step` of every block out of the rows below it
        factor = jnp.sum(jnp.where((j == (i & -8) + step) & ((i & 7) > step), low, 0.0), axis=1, keepdims=True)
        rows = inverse.reshape(size // 8, 8, size)[:, step : step + 1]
        inverse = inverse - factor * jnp.broadcast_to(rows, (size // 8, 8, size)).reshape(size, size)
    return inverse


def _inverses_of_two(low: Array) -> Array:
    """Blocks of 2: ``[[1, 0], [l, 1]]^-1 = [[1, 0], [-l, 1]]``."""
    i, j = iotas(low.shape[0])
    return jnp.where(i == j, 1.0, jnp.where((i ^ j == 1) & (i > j), -low, 0.0))


def triangular_inverse(low: Array, dtype: jnp.dtype, chip: Chip) -> Array:
    """``(I + low)^-1`` for strictly lower-triangular ``low [C,C]``, C a power of two from 8."""
    return double_inverses(chip.small_inverses(low), low, chip.small, dtype)


TPU = Chip(_swap_by_rotation, _inverses_of_eight, 3)
GPU = Chip(_swap_by_selection, _inverses_of_two, 1)
