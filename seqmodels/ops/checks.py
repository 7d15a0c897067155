"""Validation of op arguments: every message is one line that names the argument, its value and what was expected."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops.partition import Dims

DECAY_AXES = {1: "H", 3: "B T H", 4: "B T H K"}  # of a log-decay, by its rank


def match(name: str, array: Any, axes: str, sizes: dict[str, int]) -> None:
    """Check the shape of `array` against axis letters, and bind the letters that are new.

    ``match("v", v, "B T H V", sizes)`` requires rank 4 and the sizes already in `sizes`, and adds the missing ones. An
    axis may be a number. So the order of calls decides which argument is taken at its word.

    Raises:
      ValueError: wrong rank or size.
    """
    is_array(name, array)
    letters = axes.split()
    shape = tuple(jnp.shape(array))
    if len(shape) == len(letters):
        fresh = {letter: n for letter, n in zip(letters, shape) if not letter.isdigit() and letter not in sizes}
        known = {**sizes, **fresh}
        if shape == tuple(int(letter) if letter.isdigit() else known[letter] for letter in letters):
            sizes.update(fresh)
            return
    known_sizes = ", ".join(f"{letter}={sizes[letter]}" for letter in letters if letter in sizes)
    wanted = f"[{','.join(letters)}]" + (f" with {known_sizes}" if known_sizes else "")
    raise ValueError(f"{name} has shape {shape}, expected {wanted}; reshape it or fix the argument it disagrees with")


def is_array(name: str, value: Any) -> None:
    """`value` has a shape: lists and tuples are refused here, not deep inside JAX."""
    if not hasattr(value, "shape"):
        raise ValueError(f"{name} is a {type(value).__name__}, expected an array; pass jnp.asarray({name})")


def floating(**arrays: Any) -> None:
    """Every array that is not ``None`` has a floating-point dtype."""
    for name, array in arrays.items():
        if array is not None and not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise ValueError(f"{name} has dtype {jnp.result_type(array)}, expected floating point; cast with .astype")


def segment_ids(ids: Any, num_segments: int | None, sizes: dict[str, int], axes: str = "B T") -> None:
    """``segment_ids`` are integers with these `axes`; `num_segments` comes with them and is a positive int."""
    if ids is not None:
        match("segment_ids", ids, axes, sizes)
        if not jnp.issubdtype(jnp.result_type(ids), jnp.integer):
            raise ValueError(f"segment_ids has dtype {jnp.result_type(ids)}, expected int32; cast with .astype")
    if num_segments is not None:
        if ids is None:
            raise ValueError(f"num_segments={num_segments} without segment_ids, expected both; pass segment_ids")
        positive("num_segments", num_segments)


def state_axes(axes: str, num_segments: int | None, sizes: dict[str, int]) -> str:
    """Axes of a state: ``"B H K V"`` becomes ``"B S H K V"`` when segments own their states."""
    if num_segments is None:
        return axes
    sizes["S"] = num_segments
    return axes.replace("B", "B S", 1)


def positive(name: str, value: Any) -> None:
    """`value` is ``None`` or a positive Python int."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{name}={value!r} is not a positive int, expected 1 or more; leave it out for the default")


def multiple(name: str, value: int, of: str, divisor: int) -> None:
    """`divisor` divides `value`: grouped heads."""
    if divisor == 0 or value % divisor:
        raise ValueError(f"{name}={value} is not a multiple of {of}={divisor}; choose head counts that divide")


def matrix_recurrence(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    state: Array | None,
    ids: Array | None,
    num_segments: int | None,
    chunk_size: int | None,
) -> dict[str, int]:
    """The arguments that ops with a ``[B,H,K,V]`` state share; returns the sizes by axis letter."""
    sizes: dict[str, int] = {}
    match("q", q, "B T Hk K", sizes)
    match("k", k, "B T Hk K", sizes)
    if sizes["K"] == 0:
        raise ValueError(f"q and k have shape {jnp.shape(q)}, expected at least one feature; K=0 leaves no state")
    match("v", v, "B T H V", sizes)
    multiple("heads of v", sizes["H"], "heads of q and k", sizes["Hk"])
    if log_decay is not None:
        is_array("log_decay", log_decay)
        axes = DECAY_AXES.get(jnp.ndim(log_decay))
        if axes is None:
            shape = jnp.shape(log_decay)
            raise ValueError(f"log_decay has shape {shape}, expected [H], [B,T,H] or [B,T,H,K]; reshape it")
        match("log_decay", log_decay, axes, sizes)
    segment_ids(ids, num_segments, sizes)
    if state is not None:
        match("state", state, state_axes("B H K V", num_segments, sizes), sizes)
    floating(q=q, k=k, v=v, log_decay=log_decay, state=state)
    positive("chunk_size", chunk_size)
    return sizes


def matrix_recurrence_dims(log_decay: Array | None, num_segments: int | None, *extra: str) -> Dims:
    """Axes of ``q, k, v, *extra, log_decay, state, segment_ids`` and of ``out, state``, for `dispatch`."""
    decay = None if log_decay is None else DECAY_AXES[jnp.ndim(log_decay)]
    state = state_axes("B H K V", num_segments, {})
    return Dims(("B T Hk K", "B T Hk K", "B T H V", *extra, decay, state, "B T"), ("B T H V", state))


def initial_state(state: Array | None, q: Array, k: Array, v: Array, num_segments: int | None) -> Array:
    """`state` (zeros for ``None``) in the dtype in which the recurrence accumulates."""
    dtype = accumulate_dtype(q, k, v)
    if state is not None:
        return state.astype(dtype)
    B, H, K, V = v.shape[0], v.shape[2], q.shape[3], v.shape[3]
    return jnp.zeros((B, H, K, V) if num_segments is None else (B, num_segments, H, K, V), dtype)


def canonical_ids(ids: Array | None, num_segments: int | None) -> Array | None:
    """``segment_ids`` as int32, with ids outside ``0..num_segments`` made padding."""
    if ids is None:
        return None
    ids = ids.astype(jnp.int32)
    return ids if num_segments is None else jnp.where((ids < 0) | (ids > num_segments), 0, ids)
