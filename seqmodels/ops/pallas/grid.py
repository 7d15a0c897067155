"""What the walks over chunks on a TPU share: where a step of the grid is, and how a kernel is called.

Both grids are ``(batch, channels or heads, chunk, inner)``, the chunk axis in order (reversed in the backward pass).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seqmodels.axes import Array
from seqmodels.ops.dispatch import Interpretation

Inputs = list[tuple[pl.BlockSpec, Array]]
Outputs = list[tuple[pl.BlockSpec, jax.ShapeDtypeStruct]]


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


class Walk(NamedTuple):
    """What a walk needs beside its arrays."""

    grid: tuple[int, int, int, int]
    reverse: bool
    interpret: Interpretation | None
    name: str


def walk(
    kernel: Callable[..., None],
    how: Walk,
    route: Array | None,
    inputs: Inputs,
    outputs: Outputs,
    scratch: Sequence[Any],
    state_out: int,
) -> Sequence[Array]:
    """Run ``kernel(position, *input, *output, *scratch references)`` over the grid, and return the outputs.

    The last input is the state, output `state_out` what becomes of it.
    """
    prefetch = [] if route is None else [route]

    def body(*refs):
        kernel(position(how.grid[2], how.reverse, refs[0] if prefetch else None), *refs[len(prefetch) :])

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=how.grid,
            in_specs=[spec for spec, _ in inputs],
            out_specs=[spec for spec, _ in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=[shape for _, shape in outputs],
        # States that no chunk visits must come out as they went in.
        input_output_aliases={len(prefetch) + len(inputs) - 1: state_out} if prefetch else {},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        interpret=interpreter(how.interpret),
        name=how.name,
    )(*prefetch, *[x for _, x in inputs])
