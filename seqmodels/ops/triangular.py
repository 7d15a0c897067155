"""Inverse of unit lower-triangular matrices by small substitutions and block doubling, in matmuls."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from seqmodels.axes import Array

BASE = 16  # blocks up to this size are inverted by substitution
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def unit_lower_inverse(low: Float[Array, "*lead C C"]) -> Float[Array, "*lead C C"]:
    """``(I + low)^-1`` for strictly lower-triangular `low`, C a power of two.

    Neither LAPACK nor powers of `low`: ``[[X, 0], [L, Y]]^-1 = [[X', 0], [-Y' L X', Y']]`` doubles the size of the
    inverted blocks until one is left.
    """
    C = low.shape[-1]
    low_blocks = low.reshape(-1, C, C)  # [M,C,C]
    h = min(BASE, C)
    inverse = _substitute(_diagonal(low_blocks, h))  # [M,N,h,h]
    while h < C:
        pairs = inverse.reshape(-1, C // (2 * h), 2, h, h)
        corner = _diagonal(low_blocks, 2 * h)[..., h:, :h]
        corner = -_matmul(_matmul(pairs[:, :, 1], corner), pairs[:, :, 0])
        inverse = join_lower(pairs, corner)
        h *= 2
    return inverse.reshape(low.shape)


def join_lower(diagonal: Float[Array, "*lead 2 h h"], low: Float[Array, "*lead h h"]) -> Float[Array, "*lead 2*h 2*h"]:
    """``[[X, 0], [low, Y]]`` of `diagonal`, which holds X and Y, and `low`."""
    X, Y = diagonal[..., 0, :, :], diagonal[..., 1, :, :]
    top = jnp.concatenate([X, jnp.zeros_like(low)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([low, Y], axis=-1)], axis=-2)


def _diagonal(x: Array, h: int) -> Array:
    """Blocks on the diagonal: ``[M,C,C] -> [M,C/h,h,h]``."""
    return jnp.stack([x[:, i : i + h, i : i + h] for i in range(0, x.shape[-1], h)], axis=1)


def _substitute(low: Array) -> Array:
    """``(I + low)^-1 [...,h,h]`` by forward substitution: row j, once known, is taken off all rows below it."""
    h = low.shape[-1]

    def eliminate(j, X):
        column = jax.lax.dynamic_slice_in_dim(low, j, 1, axis=-1)
        return X - column * jax.lax.dynamic_slice_in_dim(X, j, 1, axis=-2)

    return jax.lax.fori_loop(0, h - 1, eliminate, jnp.broadcast_to(jnp.eye(h, dtype=low.dtype), low.shape))


def _forward(low: Array) -> tuple[Array, Array]:
    inverse = unit_lower_inverse(low)
    return inverse, inverse


def _backward(inverse: Array, cotangent: Array) -> tuple[Array]:
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (-jnp.tril(_matmul(_matmul(transposed, cotangent), transposed), -1),)


unit_lower_inverse.defvjp(_forward, _backward)
