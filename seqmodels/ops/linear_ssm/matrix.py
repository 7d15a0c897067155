"""State matrices ``a``, diagonal ``[D,N]`` or dense ``[D,N,N]``, on vectors ``[...,D,N]``."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import checks

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def check_chunk_size(size: int | None) -> None:
    """`size` is ``None`` or a power of two."""
    checks.positive("chunk_size", size)
    if size is not None and size & (size - 1):
        raise ValueError(f"chunk_size={size} is not a power of two, expected 1, 2, 4, ... such as 64")


def apply(a: Array, h: Array) -> Array:
    """``a h``."""
    return a * h if a.ndim == 2 else einsum("dij,...dj->...di", a, h)


def transpose(a: Array) -> Array:
    """``a^T``."""
    return a if a.ndim == 2 else jnp.swapaxes(a, -1, -2)


def square(a: Array) -> Array:
    """``a a``."""
    return a * a if a.ndim == 2 else einsum("dij,djk->dik", a, a)


def power(a: Array, exponent: int) -> Array:
    """``a^exponent`` for a power of two, by squaring: relative to the norm, errors grow with the exponent as those of
    the recurrence do."""
    for _ in range(exponent.bit_length() - 1):
        a = square(a)
    return a


def krylov(a: Array, h: Array, count: int) -> Array:
    """``h, a h, a² h, ...`` as ``[count,D,N]``, doubling their number."""
    rows = h.astype(jnp.result_type(a, h))[None]
    while rows.shape[0] < count:
        rows = jnp.concatenate([rows, apply(a, rows)])
        a = square(a)
    return rows[:count]


def advance(a: Array, h: Array, steps: Array, most: int) -> Array:
    """``a^steps h`` for ``h [B,D,N]`` and ``steps [B]`` int32 in ``0..most``; a row with 0 steps stays bit for bit."""
    for bit in range(most.bit_length()):
        h = jnp.where(((steps >> bit) & 1 == 1)[:, None, None], apply(a, h), h)
        a = square(a)
    return h


def planes(h: Array) -> Array:
    """Real and imaginary parts side by side, ``[...,N]`` -> ``[...,2N]``; a real `h` as it is."""
    return jnp.concatenate([h.real, h.imag], axis=-1) if jnp.iscomplexobj(h) else h


def unite(h: Array, dtype: jnp.dtype) -> Array:
    """Undo `planes` for a vector of `dtype`."""
    return jax.lax.complex(*jnp.split(h, 2, axis=-1)) if jnp.issubdtype(dtype, jnp.complexfloating) else h


def contract(spec: str, c: Array, h: Array) -> Array:
    """Real part of an ``einsum`` over n, in real arithmetic: complex products are slow where matmuls are fast."""
    if not jnp.iscomplexobj(c) or not jnp.iscomplexobj(h):
        return einsum(spec, c.real, h.real)
    return einsum(spec, planes(c.conj()), planes(h))
