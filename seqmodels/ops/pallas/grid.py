"""What the walks over chunks on a TPU share: where a step of the grid is, and how its kernel is interpreted.

Both grids are ``(batch, channels or heads, chunk, inner)``, the chunk axis in order (reversed in the backward pass).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seqmodels.ops.dispatch import Interpretation


class Position(NamedTuple):
    """Where a grid step is."""

    first: Any  # the sequence (or segment) begins with this chunk
    last: Any
    live: Any  # False in a chunk without tokens
    group: Any  # index on the inner axis: the block of value heads, or of channels


def position(chunks: int, reverse: bool, route: Any) -> Position:
    """The current step; `route` holds a word for each of the `chunks` (see ``docs/kernels.md``), or is ``None``."""
    step, group = pl.program_id(2), pl.program_id(3)
    n = chunks - 1 - step if reverse else step
    if route is None:
        return Position(n == 0, n == chunks - 1, True, group)
    word = route[pl.program_id(0) * chunks + n]
    return Position((word & 2) != 0, (word & 1) != 0, (word & 4) != 0, group)


def when(condition: Any, run: Callable[[], None]) -> None:
    """`run` where `condition` holds, without a branch if it is known to."""
    if condition is True:
        run()
    else:
        pl.when(condition)(run)


def interpreter(how: Interpretation | None) -> Any:
    """The ``interpret`` argument of `pl.pallas_call`."""
    return pltpu.InterpretParams(detect_races=True) if how and how.races else how is not None
