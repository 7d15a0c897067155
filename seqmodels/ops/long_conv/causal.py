"""Causal convolution of a line of tokens: one document by FFT or by one matmul, packed documents by halving."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqmodels.axes import Array

MATMUL = 128  # tokens up to which a triangular matmul beats the FFT
BASE = 8  # tokens per piece that `_halving` convolves term by term
BUDGET = 2**25  # complex numbers of one spectrum [B,F,D] that is held at a time

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def convolve(x: Array, kernel: Array, label: Array | None = None) -> Array:
    """``y_t = sum_j kernel[j] x_{t-j}`` of ``x [B,P,D]``, ``kernel [L,D]``; the sum is over tokens of t's own label.

    ``label [B,P]`` int32 never falls along a row; ``None``: all tokens have the same one.
    """
    kernel = kernel[: x.shape[1]]
    return _whole(x, kernel) if label is None else _labelled(x, kernel, label)


@jax.custom_vjp
def _labelled(x: Array, kernel: Array, label: Array) -> Array:
    return jax.lax.cond(_uniform(label), lambda x, k, _: _whole(x, k), _halving, x, kernel, label)


def _labelled_backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array | None, ...]:
    """Computes again: a gradient through `cond` would keep what either branch needs."""
    x, kernel, label = saved

    def through(run: Callable[..., Array]) -> Callable[[], tuple[Array, ...]]:
        return lambda: jax.vjp(run, x, kernel)[1](dy)

    halving = lambda x, kernel: _halving(x, kernel, label)  # noqa: E731
    return *jax.lax.cond(_uniform(label), through(_whole), through(halving)), None


_labelled.defvjp(lambda *inputs: (_labelled(*inputs), inputs), _labelled_backward)


def _uniform(label: Array) -> Array:
    return jnp.all(label[:, -1] == label[:, 0])


def _whole(x: Array, kernel: Array) -> Array:
    """One document: ``[B,P,D]`` -> ``[B,P,D]``."""
    if x.shape[1] <= MATMUL:
        return _einsum("ijd,bjd->bid", _toeplitz(kernel, x.shape[1], 0), x)
    return _by_fft(x, kernel)


def _toeplitz(kernel: Array, size: int, offset: int) -> Array:
    """``kernel[offset + i - j]`` as ``[size,size,D]``, 0 outside of the kernel."""
    taps = jnp.pad(kernel, ((size - 1, max(0, offset + size - kernel.shape[0])), (0, 0)))
    lag = jnp.arange(size)[:, None] - jnp.arange(size)[None]
    return taps[offset + size - 1 + lag]


def _by_fft(x: Array, kernel: Array) -> Array:
    """Over groups of channels whose spectra fit the budget, each computed again in the backward pass."""
    B, P, D = x.shape
    size = fast_length(P + kernel.shape[0] - 1)
    count = max(1, BUDGET // (B * (size // 2 + 1)))  # channels at a time

    @jax.checkpoint
    def group(x: Array, kernel: Array) -> Array:
        product = jnp.fft.rfft(x, size, axis=1) * jnp.fft.rfft(kernel, size, axis=0)[None]
        return jnp.fft.irfft(product, size, axis=1)[:, :P]

    if count >= D:
        return group(x, kernel)
    pad = lambda leaf: jnp.pad(leaf, ((0, 0),) * (leaf.ndim - 1) + ((0, -D % count),))  # noqa: E731
    split = lambda leaf: jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], -1, count), -2, 0)  # noqa: E731
    y = jax.lax.map(lambda pair: group(*pair), (split(pad(x)), split(pad(kernel))))  # [groups,B,P,count]
    return jnp.moveaxis(y, 0, 2).reshape(B, P, -1)[..., :D]


def fast_length(least: int) -> int:
    """The smallest of ``2^n`` and ``3 * 2^n`` that is at least `least`."""
    power = 1 << max(least - 1, 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= least else power


def _halving(x: Array, kernel: Array, label: Array) -> Array:
    """Packed documents: pieces of `BASE` tokens term by term, then what left halves add to right ones, doubling."""
    P = x.shape[1]
    spare = max(BASE, 1 << (P - 1).bit_length()) - P
    x = jnp.pad(x, ((0, 0), (0, spare), (0, 0)))
    label = jnp.pad(label, ((0, 0), (0, spare)), mode="edge")
    y = _small_pieces(x, kernel, label)
    size = BASE
    while size < P:
        y = y + _across(x, kernel, label, size)
        size *= 2
    return y[:, :P]


def _small_pieces(x: Array, kernel: Array, label: Array) -> Array:
    """Products whose two tokens lie in the same piece of `BASE` tokens."""
    piece = lambda leaf: leaf.reshape(leaf.shape[0], -1, BASE, *leaf.shape[2:])  # noqa: E731
    x_, label_ = piece(x), piece(label)

    def term(lag: int) -> Array:
        same = label_[:, :, lag:] == label_[:, :, : BASE - lag]
        product = jnp.where(same[..., None], x_[:, :, : BASE - lag], 0) * kernel[lag]
        return jnp.pad(product, ((0, 0), (0, 0), (lag, 0), (0, 0)))

    return sum((term(lag) for lag in range(1, min(BASE, kernel.shape[0]))), start=term(0)).reshape(x.shape)


def _across(x: Array, kernel: Array, label: Array, size: int) -> Array:
    """Products from the left to the right half of all pieces of ``2 * size`` tokens, for the document in the middle."""
    B = x.shape[0]
    reach = min(size, max(BASE, 1 << (kernel.shape[0] - 1).bit_length()))  # farther tokens the kernel does not join
    halves = lambda leaf: leaf.reshape(B, -1, 2, size, *leaf.shape[2:])  # noqa: E731
    left, from_ = halves(x)[:, :, 0, -reach:], halves(label)[:, :, 0, -reach:]
    to = halves(label)[:, :, 1, :reach]
    middle = to[..., :1]
    left = jnp.where((from_ == middle)[..., None], left, 0)
    if reach <= MATMUL:
        right = _einsum("ijd,bnjd->bnid", _toeplitz(kernel, reach, reach), left)
    else:
        product = jnp.fft.rfft(left, 2 * reach, axis=2) * jnp.fft.rfft(kernel[: 2 * reach], 2 * reach, axis=0)[None]
        right = jnp.fft.irfft(product, 2 * reach, axis=2)[
            :, :, reach:
        ]  # circular: the rest wraps around, this does not
    right = jnp.where((to == middle)[..., None], right, 0)
    y = jnp.pad(right[:, :, None], ((0, 0), (0, 0), (1, 0), (0, size - reach), (0, 0)))
    return y.reshape(x.shape)
