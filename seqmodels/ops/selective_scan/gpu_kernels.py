"""The bodies of the GPU kernels of `selective_scan`: chunks as maps, the walk over them, outputs and gradients.

A program holds all N states of a block of M channels as ``[N,M]``, channels along the threads, so that a thread reads
its own states without a word to the others; a token's B and C are columns ``[N,1]``, what is the channel's own are rows
``[1,M]``. Time is a loop of loads, since Triton knows no slices of values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from seqmodels.axes import Array

SUB = 4  # tokens whose states the gradient holds at once
BLOCK = 128  # channels of a program at most, one per thread


class Operands(NamedTuple):
    """What all kernels but the walk read; the order is the one of the kernels' arguments."""

    x: Any  # [B,T,D]
    dt: Any  # [B,T,D]
    A: Any  # [N,D]
    B: Any  # [B,T,G,N]
    C: Any  # [B,T,G,N]
    z: Any  # [B,T,D] or None
    D: Any  # [D] or None
    delta_bias: Any  # [D] or None
    marks: Any  # [B,T] int32 or None: 0 padding, 1 a token, 2 the first token of a new document


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static sizes of a call's kernels."""

    T: int
    C: int
    D: int
    N: int
    G: int
    softplus: bool

    @property
    def chunks(self) -> int:
        return -(-self.T // self.C)

    @property
    def states(self) -> int:
        """The power of two that holds N."""
        return 1 << (self.N - 1).bit_length()

    @property
    def block(self) -> int:
        """Channels of a program, of one group."""
        return min(max(32, 1 << (self.D // self.G - 1).bit_length()), max(32, min(BLOCK, 2048 // self.states)))

    @property
    def blocks(self) -> int:
        return self.G * -(-(self.D // self.G) // self.block)

    def grid(self, batch: int) -> tuple[int, int, int]:
        """One program for every chunk of every block of channels; only the first axis may exceed 65,535."""
        return self.chunks, self.blocks, batch


class _Token(NamedTuple):
    """A token of a block of channels, by the op's names; all zero at padding."""

    at: Array  # [1,1] its position
    exist: Array  # [1,M] it stands in the sequence
    real: Array  # [1,M] and is no padding
    real_states: Array  # [N,1]
    x: Array  # [1,M]
    raw: Array  # [1,M] step size before the softplus
    dt: Array  # [1,M] step size
    B: Array  # [N,1]
    decay: Array  # [N,M]


class _Block:
    """M channels of a group, in row b."""

    def __init__(self, sizes: Sizes, block: Any, b: Any):
        per, blocks, M = sizes.D // sizes.G, sizes.blocks // sizes.G, sizes.block
        self.sizes, self.b, self.group, self.part = sizes, b, block // blocks, block % blocks
        local = self.part * M + jax.lax.broadcasted_iota(jnp.int32, (1, M), 1)
        self.channels, self.own = self.group * per + local, local < per
        self.states = jax.lax.broadcasted_iota(jnp.int32, (sizes.states, 1), 0)
        self.whole = self.own & (self.states < sizes.N)  # [N,M]

    def state(self, ref: Any, *place: Any) -> Any:
        """``[N,M]`` of an array ``[B,...,N,D]``."""
        return ref.at[(self.b, *place, self.states, self.channels)]


class _Chunk(_Block):
    """M channels of a group in a chunk."""

    def __init__(self, sizes: Sizes, operands: Operands):
        super().__init__(sizes, pl.program_id(1), pl.program_id(2))
        self.n, self.given = pl.program_id(0), operands
        self.A = _load(operands.A.at[self.states, self.channels], self.whole)
        row = lambda ref: None if ref is None else _load(ref.at[self.channels], self.own)  # noqa: E731
        self.D, self.bias = row(operands.D), row(operands.delta_bias)

    def token(self, i: Any) -> _Token:
        """The i-th token of the chunk."""
        at = self.n * self.sizes.C + i + jnp.zeros((1, 1), jnp.int32)
        inside = at < self.sizes.T
        real, decay = inside, None
        if self.given.marks is not None:
            mark = plgpu.load(self.given.marks.at[self.b, at], mask=inside, other=jnp.zeros((1, 1), jnp.int32))
            real, decay = mark > 0, jnp.where(mark == 2, 0.0, 1.0)
        real_states = real & (self.states < self.sizes.N)
        real = real & self.own
        raw = self.column(self.given.dt, at, real)
        raw = raw if self.bias is None else raw + self.bias
        dt = jnp.maximum(raw, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(raw))) if self.sizes.softplus else raw
        dt = jnp.where(real, dt, 0.0)
        step = jnp.exp(dt * self.A)
        decay = step if decay is None else step * decay
        x, B = self.column(self.given.x, at, real), self.row(self.given.B, at, real_states)
        return _Token(at, inside & self.own, real, real_states, x, raw, dt, B, decay)

    def column(self, ref: Any, at: Array, mask: Array) -> Array:
        """``[1,M]`` of ``[B,T,D]``."""
        return _load(ref.at[self.b, at, self.channels], mask)

    def row(self, ref: Any, at: Array, mask: Array) -> Array:
        """``[N,1]`` of ``[B,T,G,N]``."""
        return _load(ref.at[self.b, at, self.group, self.states], mask)

    def C(self, token: _Token) -> Array:
        return self.row(self.given.C, token.at, token.real_states)

    def z(self, token: _Token) -> Array | None:
        return None if self.given.z is None else self.column(self.given.z, token.at, token.real)

    def skip(self, token: _Token, y: Array) -> Array:
        """What is read from the state, with what D adds."""
        return y if self.D is None else y + self.D * token.x

    def store(self, ref: Any, token: _Token, value: Array) -> None:
        """Write ``[1,M]`` of ``[B,T,D]``, padding included."""
        plgpu.store(ref.at[self.b, token.at, self.channels], value.astype(ref.dtype), mask=token.exist)


def _load(at: Any, mask: Array) -> Array:
    """In float32, 0 where `mask` does not hold."""
    return plgpu.load(at, mask=mask, other=jnp.zeros(mask.shape, at.dtype)).astype(jnp.float32)


def _split(structure: Any, refs: tuple[Any, ...]) -> tuple[Any, Sequence[Any]]:
    """The arguments of a kernel in their structure, and the references of its outputs."""
    return jax.tree.unflatten(structure, refs[: structure.num_leaves]), refs[structure.num_leaves :]


def _sum(x: Array, axis: int) -> Array:
    return jnp.sum(x, axis=axis, keepdims=True)


def _after(token: _Token, state: Array) -> Array:
    """The state after a token."""
    return token.decay * state + token.B * (token.dt * token.x)


def chunks(sizes: Sizes, structure: Any, *refs: Any) -> None:
    """A chunk as a map of the state before it: ``factor, added [B,chunks,N,D]``."""
    (operands,), outs = _split(structure, refs)
    chunk = _Chunk(sizes, operands)

    def step(i, held):
        token = chunk.token(i)
        return token.decay * held[0], _after(token, held[1])

    _store_map(chunk, outs, jax.lax.fori_loop(0, sizes.C, step, _identity(sizes)))


def d_chunks(sizes: Sizes, structure: Any, *refs: Any) -> None:
    """The adjoint of a chunk as a map of the gradient of the state after it."""
    (operands, dy), outs = _split(structure, refs)
    chunk = _Chunk(sizes, operands)

    def step(i, held):
        token = chunk.token(sizes.C - 1 - i)
        d_read, z = chunk.column(dy, token.at, token.real), chunk.z(token)
        d_read = d_read if z is None else d_read * z * jax.nn.sigmoid(z)
        return token.decay * held[0], token.decay * (held[1] + chunk.C(token) * d_read)

    _store_map(chunk, outs, jax.lax.fori_loop(0, sizes.C, step, _identity(sizes)))


def _identity(sizes: Sizes) -> tuple[Array, Array]:
    shape = sizes.states, sizes.block
    return jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)


def _store_map(chunk: _Chunk, outs: Sequence[Any], values: tuple[Array, Array]) -> None:
    for ref, value in zip(outs, values, strict=True):
        plgpu.store(chunk.state(ref, chunk.n), value, mask=chunk.whole)


def walk(sizes: Sizes, structure: Any, *refs: Any, reverse: bool) -> None:
    """From the chunks' maps and ``state [B,S,N,D]`` to the state before every chunk on the way, and the last ones."""
    (factor, added, state, *words), (before, after) = _split(structure, refs)
    block = _Block(sizes, pl.program_id(0), pl.program_id(1))

    def step(i, held):
        n = sizes.chunks - 1 - i if reverse else i
        slot = leave = None
        if words:
            word = words[0][block.b, n]
            slot, first, last = word >> 3, (word & 2) != 0, (word & 1) != 0
            enter, leave = (last, first) if reverse else (first, last)
            held = jnp.where(enter, _load(block.state(state, slot), block.whole & enter), held)
        plgpu.store(block.state(before, n), held, mask=block.whole)
        read = lambda ref: _load(block.state(ref, n), block.whole)  # noqa: E731
        held = read(factor) * held + read(added)
        if words:
            plgpu.store(block.state(after, slot), held, mask=block.whole & leave)
        return held

    start = _identity(sizes)[1] if words else _load(block.state(state, 0), block.whole)
    held = jax.lax.fori_loop(0, sizes.chunks, step, start)
    if not words:
        plgpu.store(block.state(after, 0), held, mask=block.whole)


def outputs(sizes: Sizes, structure: Any, *refs: Any) -> None:
    """Outputs of a chunk, from the state before it."""
    (operands, before), (y,) = _split(structure, refs)
    chunk = _Chunk(sizes, operands)

    def step(i, held):
        token = chunk.token(i)
        held = _after(token, held)
        out, z = chunk.skip(token, _sum(chunk.C(token) * held, 0)), chunk.z(token)
        chunk.store(y, token, out if z is None else out * z * jax.nn.sigmoid(z))
        return held

    jax.lax.fori_loop(0, sizes.C, step, _load(chunk.state(before, chunk.n), chunk.whole))


class _Sums(NamedTuple):
    """What the gradients of a chunk's tokens add up to."""

    A: Array  # [N,M]
    D: Array  # [1,M]
    delta_bias: Array  # [1,M]


def gradients(sizes: Sizes, structure: Any, *refs: Any, names: Sequence[str]) -> None:
    """Gradients of a chunk's inputs, from the state before it and the gradient of the one after it.

    The states of `SUB` tokens are held at once; those before every `SUB` tokens are computed first.
    """
    (operands, dy, before, d_states), outs = _split(structure, refs)
    chunk, refs_of = _Chunk(sizes, operands), dict(zip(names, outs, strict=True))
    starts = [_load(chunk.state(before, chunk.n), chunk.whole)]
    advance = lambda i, held: _after(chunk.token(i), held)  # noqa: E731
    for first in range(0, sizes.C - SUB, SUB):
        starts.append(jax.lax.fori_loop(first, first + SUB, advance, starts[-1]))

    def some(step, held):
        part = len(starts) - 1 - step
        state = starts[0]
        for j, start in enumerate(starts[1:], 1):
            state = jnp.where(part == j, start, state)
        return _some_gradients(chunk, refs_of, dy, part * SUB, state, *held)

    row = jnp.zeros((1, sizes.block), jnp.float32)
    sums = _Sums(_identity(sizes)[1], row, row)
    d_state = _load(chunk.state(d_states, chunk.n), chunk.whole)
    _, sums = jax.lax.fori_loop(0, len(starts), some, (d_state, sums))
    plgpu.store(chunk.state(refs_of["A"], chunk.n), sums.A, mask=chunk.whole)
    for name in refs_of.keys() & {"D", "delta_bias"}:
        at = refs_of[name].at[chunk.b, chunk.n, chunk.channels]
        plgpu.store(at, getattr(sums, name), mask=chunk.own)


def _some_gradients(
    chunk: _Chunk, outs: dict[str, Any], dy: Any, first: Any, state: Array, d_state: Array, sums: _Sums
) -> tuple[Array, _Sums]:
    """Back through `SUB` tokens: the gradient of `state`, the one before them, and the sums."""
    tokens = [chunk.token(first + i) for i in range(SUB)]
    states = [state]
    for token in tokens:
        states.append(_after(token, states[-1]))
    for i in reversed(range(SUB)):
        token = tokens[i]
        x, dt, C, z = token.x, token.dt, chunk.C(token), chunk.z(token)
        d_read = chunk.column(dy, token.at, token.real)
        if z is not None:
            gate, read = jax.nn.sigmoid(z), chunk.skip(token, _sum(C * states[i + 1], 0))
            chunk.store(outs["z"], token, d_read * read * gate * (1.0 + z * (1.0 - gate)))
            d_read = d_read * z * gate
        d_state = d_state + C * d_read
        _store_row(chunk, outs["C"], token, _sum(d_read * states[i + 1], 1))
        _store_row(chunk, outs["B"], token, _sum(d_state * (dt * x), 1))
        du = _sum(d_state * token.B, 0)
        d_state = token.decay * d_state
        slope = d_state * states[i]  # of the exponent dt A
        d_dt = jnp.where(token.real, _sum(slope * chunk.A, 0) + du * x, 0.0)
        d_dt = d_dt * jax.nn.sigmoid(token.raw) if chunk.sizes.softplus else d_dt
        dx = du * dt if chunk.D is None else du * dt + chunk.D * d_read
        chunk.store(outs["x"], token, dx)
        chunk.store(outs["dt"], token, d_dt)
        sums = _Sums(sums.A + slope * dt, sums.D + d_read * x, sums.delta_bias + d_dt)
    return d_state, sums


def _store_row(chunk: _Chunk, ref: Any, token: _Token, value: Array) -> None:
    """Write this block's ``[N,1]`` of ``[B,T,G,blocks,N]``."""
    mask = (token.at < chunk.sizes.T) & (chunk.states < chunk.sizes.N)
    plgpu.store(ref.at[chunk.b, token.at, chunk.group, chunk.part, chunk.states], value, mask=mask)
