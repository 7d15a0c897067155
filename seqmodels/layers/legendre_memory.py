"""The linear memory of the Legendre Memory Unit (LMU; Voelker et al. 2019), discretised by zero-order hold.

``m_t = Ā m_{t-1} + B̄ u_t``: N Legendre coefficients of the last θ samples of a scalar signal. Ā and B̄ are fixed and
computed in float64 (`ops.hippo`, measure ``lmu``). In parallel (Chilkuri & Eliasmith 2021, arXiv:2102.11417): a
convolution with the impulse response inside chunks of C tokens, and one state per chunk for everything before it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops import checks, hippo, segments
from seqmodels.ops.linear_ssm.matrix import check_chunk_size

CHUNK = 64
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Tables(NamedTuple):
    """A memory over a chunk of C tokens, float64."""

    response: np.ndarray  # [C,N]: Ā^i B̄
    powers: tuple[np.ndarray, ...]  # Ā^1, Ā^2, Ā^4, ..., Ā^C, each [N,N]


@functools.lru_cache(maxsize=8)
def tables(order: int, window: float, size: int) -> Tables:
    """`Tables` of ``N = order``, ``θ = window`` samples and chunks of `size` tokens, a power of two."""
    a, b = hippo.discretize(*hippo.transition("lmu", order, theta=float(window)), 1.0)
    response, power, powers = b[None], a, [a]
    while response.shape[0] < size:
        response = np.concatenate([response, response @ power.T])
        power = power @ power
        powers.append(power)
    return Tables(response, tuple(powers))


def legendre_memory(
    u: Float[Array, "B T"],
    order: int,
    window: float,
    *,
    state: Float[Array, "B N"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T N"], Float[Array, "B N"]]:
    """The memory after every sample, and after the last one.

    Args:
      u: ``[B,T]``.
      order: N, coefficients.
      window: θ > 0, samples that are remembered.
      state: ``[B,N]``; ``None`` means zeros.
      segment_ids: ``[B,T]`` integers, 0 is padding; see ``docs/design.md``.
      chunk_size: tokens per chunk, a power of two; ``None`` chooses.

    Returns:
      ``m [B,T,N]``, zero at padding, and the state, both in float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes do not fit, or a size is not positive.
    """
    checks.positive("order", order)
    check_chunk_size(chunk_size)
    sizes = {"N": order}
    checks.match("u", u, "B T", sizes)
    checks.segment_ids(segment_ids, None, sizes)
    dtype, length = accumulate_dtype(u), u.shape[1]
    state = jnp.zeros((u.shape[0], order), dtype) if state is None else state.astype(dtype)
    checks.match("state", state, "B N", sizes)
    if length == 0:
        return jnp.zeros((*u.shape, order), dtype), state
    table = tables(order, window, min(chunk_size or CHUNK, 1 << (length - 1).bit_length()))
    if segment_ids is None:
        m = _line(u.astype(dtype), table, state, None)
        return m, m[:, -1]
    real = segment_ids != 0
    layout = segments.regroup(real.astype(jnp.int32), 1, 1)
    label = jax.lax.cummax(layout.gather(segments.document_index(segment_ids)), axis=1)
    m = _line(layout.gather(u.astype(dtype)), table, state, label)
    count = jnp.sum(real, axis=1)
    last = jnp.take_along_axis(m, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    return layout.scatter(m), jnp.where(count[:, None] > 0, last, state)


def _line(u: Array, table: Tables, state: Array, label: Array | None) -> Array:
    """``[B,P] -> [B,P,N]`` without padding before the end; documents are numbered by ``label [B,P]``, from 0."""
    batch, length = u.shape
    size = table.response.shape[0]
    fold = lambda x, mode: jnp.pad(x, ((0, 0), (0, -length % size)), mode=mode).reshape(batch, -1, size)  # noqa: E731
    chunks = fold(u, "constant")
    lag = np.arange(size)[:, None] - np.arange(size)[None]
    response = jnp.asarray(table.response, u.dtype)
    toeplitz = jnp.where((lag >= 0)[..., None], response[np.maximum(lag, 0)], 0)  # [C,C,N]
    keep, label = None, None if label is None else fold(label, "edge")
    if label is None:
        inside = _einsum("bnj,ijk->bnik", chunks, toeplitz)
    else:
        same = label[..., :, None] == label[..., None, :]
        inside = _einsum("bnij,ijk->bnik", jnp.where(same, chunks[..., None, :], 0), toeplitz)
        entering = jnp.pad(label[:, :, -1], ((0, 0), (1, 0)))[:, :-1]
        keep = label == entering[..., None]  # [B,n,C]: the token's document is that of the state before the chunk
    before = _states(inside[:, :, -1], table, state, None if keep is None else keep[:, :, -1])
    passed = _krylov(before, table)
    m = inside + (passed if keep is None else jnp.where(keep[..., None], passed, 0))
    return m.reshape(batch, -1, m.shape[-1])[:, :length]


def _states(added: Array, table: Tables, state: Array, keep: Array | None) -> Array:
    """States before the chunks ``[B,n,N]``: ``S_n = Ā^C S_{n-1} + added_n``, the first term only where `keep`."""
    through = jnp.asarray(table.powers[-1].T, added.dtype)

    def step(state: Array, chunk: tuple[Array, Array | None]) -> tuple[Array, Array]:
        added, keep = chunk
        passed = jnp.matmul(state, through, precision=jax.lax.Precision.HIGHEST)
        return added + (passed if keep is None else jnp.where(keep[:, None], passed, 0)), state

    time_major = (jnp.moveaxis(added, 1, 0), None if keep is None else keep.T)
    return jnp.moveaxis(jax.lax.scan(step, state, time_major)[1], 0, 1)


def _krylov(m: Array, table: Tables) -> Array:
    """``Ā m, Ā² m, ..., Ā^C m``: ``[B,n,N] -> [B,n,C,N]``, doubling their number."""
    advance = lambda rows, power: _einsum("bnik,lk->bnil", rows, jnp.asarray(power, m.dtype))  # noqa: E731
    rows = advance(m[:, :, None], table.powers[0])
    for power in table.powers[:-1]:
        rows = jnp.concatenate([rows, advance(rows, power)], axis=2)
    return rows
