"""An implementation of an op on one case, compiled and ready to be timed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure
from seqmodels.ops import cases


class Programs(NamedTuple):
    """One implementation on one case, ready to run."""

    forward: Callable[[], Any]
    both: Callable[[], Any]  # forward and backward
    peak_bytes: int  # of `both`
    compile_seconds: float  # of `both`


def programs(op: cases.Op, impl: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Programs:
    """Compile `impl` forward, and forward with the gradient of every floating-point positional argument."""
    arrays = {name: value for name, value in kwargs.items() if isinstance(value, jax.Array)}
    options = {name: value for name, value in kwargs.items() if name not in arrays}
    chosen = [i for i, x in enumerate(args) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)]

    def forward(args, arrays):
        return op.run(*args, **arrays, **options, impl=impl)

    def both(args, arrays, cotangent):
        def of_chosen(*values):
            full = list(args)
            for i, value in zip(chosen, values):
                full[i] = value
            return forward(full, arrays)

        out, pull = jax.vjp(of_chosen, *(args[i] for i in chosen))
        return out, pull(cotangent)

    args = tuple(args)
    shapes = jax.eval_shape(forward, args, arrays)
    cotangent = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
    run_forward = jax.jit(forward).lower(args, arrays).compile()
    lowered = jax.jit(both).lower(args, arrays, cotangent)
    compile_seconds, run_both = measure.timed(lowered.compile)
    return Programs(
        functools.partial(run_forward, args, arrays),
        functools.partial(run_both, args, arrays, cotangent),
        measure.peak_bytes(run_both),
        compile_seconds,
    )
