"""The elementwise recurrence, real and complex, as Triton kernels for a GPU. See ``docs/kernels.md``.

One kernel reduces every chunk to what it multiplies a state by and what it adds, all chunks at once; XLA combines these
few numbers to the state before every chunk; a second kernel computes the outputs of all chunks from there. Documents
and segments are laid out around it by XLA, as in the chunked form. Triton has no complex numbers: their two parts are
arrays of their own, "planes".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from seqmodels.axes import Array
from seqmodels.ops import dispatch
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.linear_scan import chunked
from seqmodels.ops.pallas.gradient import differentiable
from seqmodels.ops.pallas.run import like, same_axes

CHUNK = 64  # tokens
BLOCK = 128  # channels of a program, one per thread


class Call(NamedTuple):
    """What is static about a call."""

    C: int
    interpret: Interpretation | None


def supports(
    a: Array,
    b: Array,
    state: Array,
    segment_ids: Array | None,
    *,
    num_segments: int | None,
    chunk_size: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    for name, x in (("a", a), ("b", b)):
        if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.complex64):
            return f"{name} has dtype {x.dtype}, a GPU kernel takes float32, bfloat16 and complex64"
        if math.prod(x.shape) == 0:
            return f"{name} has shape {x.shape}, a GPU kernel takes no empty axis"
    if b.shape[1] == 1:
        return "T=1, a GPU kernel has nothing to share out over time"
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return "64-bit mode (jax_enable_x64) is on, a GPU kernel takes 32-bit indices"
    return None


def run(
    a: Array,
    b: Array,
    state: Array,
    segment_ids: Array | None,
    *,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """As the op, with a state and `a` of the shape of `b`; `h` in the dtype of `b`."""
    options = {"num_segments": num_segments, "chunk_size": chunk_size}
    return chunked.run(a, b, state, segment_ids, **options, solve=_solve)


def _solve(a: Array, b: Array, state: Array, chunk_size: int | None) -> Array:
    """`chunked.solve` by the kernels: ``[B,T,...]`` float32 or complex64."""
    flat = lambda x, lead: x.reshape(*x.shape[:lead], -1)  # noqa: E731
    inputs = same_axes((flat(a, 2), flat(b, 2), flat(state, 1)))
    return _kernel(Call(chunk_size or CHUNK, dispatch.interpretation()), inputs, None).reshape(b.shape)


def _walk(call: Call, a: Array, b: Array, state: Array, reverse: bool) -> Array:
    """``h_t = a_t h_{t-1} + b_t`` from `state`, or from the last token to the first: ``[B,T,D]``."""
    B, T, D = b.shape
    chunks = -(-T // call.C)
    grid = (chunks, -(-D // BLOCK), B)  # only the first axis may exceed 65,535
    before = state[:, None]
    if chunks > 1:
        borders = like(b, (B, chunks, D))
        factor, added = _launch(_chunks_kernel, call, reverse, T, grid, [a, b], [borders, borders])
        after = chunked.parallel(factor, added, state, reverse=reverse)
        before = [after[:, 1:], before] if reverse else [before, after[:, :-1]]
        before = jnp.concatenate(before, axis=1)
    return _launch(_outputs_kernel, call, reverse, T, grid, [a, b, before], [like(b)])[0]


Planes = tuple[Any, ...]  # the number itself, or its real and its imaginary part


def _planes(x: Array) -> Planes:
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def _times(a: Planes, h: Planes) -> Planes:
    if len(a) == 1:
        return (a[0] * h[0],)
    return a[0] * h[0] - a[1] * h[1], a[0] * h[1] + a[1] * h[0]


def _plus(x: Planes, y: Planes) -> Planes:
    return tuple(a + b for a, b in zip(x, y, strict=True))


def _launch(
    kernel: Callable[..., None], call: Call, reverse: bool, T: int, grid: tuple[int, ...], inputs: Any, outs: Any
) -> list[Array]:
    """The kernel's results; it gets, and gives, the planes of every array."""
    parts = len(_planes(inputs[0]))
    results = pl.pallas_call(
        functools.partial(kernel, call.C, T, reverse, parts),
        grid=grid,
        out_shape=[like(out, out.shape, jnp.float32) for out in outs for _ in range(parts)],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=call.interpret is not None,
        name=f"linear_scan{kernel.__name__.removesuffix('_kernel')}",
    )(*(plane for x in inputs for plane in _planes(x)))
    pairs = _grouped(tuple(results), parts)
    return [jax.lax.complex(*pair) if parts == 2 else pair[0] for pair in pairs]


def _grouped(planes: Planes, parts: int) -> list[Planes]:
    """One tuple for every array."""
    return [planes[i : i + parts] for i in range(0, len(planes), parts)]


class _Rows:
    """The tokens of a chunk, one after the other: ``[BLOCK]`` channels each."""

    def __init__(self, C: int, T: int, reverse: bool, D: int):
        self.C, self.T, self.reverse = C, T, reverse
        self.n, self.b = pl.program_id(0), pl.program_id(2)
        self.channels = pl.program_id(1) * BLOCK + jax.lax.broadcasted_iota(jnp.int32, (BLOCK,), 0)
        self.exist = self.channels < D

    def border(self, ref: Any) -> Any:
        """This chunk's row of ``[B,chunks,D]``."""
        return ref.at[self.b, self.n, self.channels]

    def token(self, i: Any) -> tuple[Any, Array]:
        """Position of the i-th token on the way, and which channels of it exist."""
        t = self.n * self.C + (self.C - 1 - i if self.reverse else i)
        return t, self.exist & (t < self.T)

    def load(self, refs: Planes, t: Any, exist: Array, other: float) -> Planes:
        """A token's numbers, and the real number `other` where it does not exist."""
        fillers = (jnp.full((BLOCK,), value, jnp.float32) for value in (other, 0.0))
        return tuple(
            plgpu.load(ref.at[self.b, t, self.channels], mask=exist, other=filler) for ref, filler in zip(refs, fillers)
        )


def _chunks_kernel(C: int, T: int, reverse: bool, parts: int, *refs: Any) -> None:
    """A chunk as a map of the state before it."""
    a, b, *outs = _grouped(refs, parts)
    rows = _Rows(C, T, reverse, a[0].shape[2])

    def step(i, held):
        t, exist = rows.token(i)
        a_t = rows.load(a, t, exist, 1.0)
        return _times(a_t, held[0]), _plus(_times(a_t, held[1]), rows.load(b, t, exist, 0.0))

    number = lambda value: (jnp.full((BLOCK,), value, jnp.float32), jnp.zeros((BLOCK,), jnp.float32))[:parts]  # noqa: E731
    for out, values in zip(outs, jax.lax.fori_loop(0, C, step, (number(1.0), number(0.0))), strict=True):
        for ref, value in zip(out, values, strict=True):
            plgpu.store(rows.border(ref), value, mask=rows.exist)


def _outputs_kernel(C: int, T: int, reverse: bool, parts: int, *refs: Any) -> None:
    a, b, before, h = _grouped(refs, parts)
    rows = _Rows(C, T, reverse, a[0].shape[2])

    def step(i, held):
        t, exist = rows.token(i)
        held = _plus(_times(rows.load(a, t, exist, 1.0), held), rows.load(b, t, exist, 0.0))
        for ref, value in zip(h, held, strict=True):
            plgpu.store(ref.at[rows.b, t, rows.channels], value, mask=exist)
        return held

    zero = jnp.zeros((BLOCK,), jnp.float32)
    start = tuple(plgpu.load(rows.border(ref), mask=rows.exist, other=zero) for ref in before)
    jax.lax.fori_loop(0, C, step, start)


def _forward(call: Call, inputs: tuple[Array, Array, Array], ids: None, save: bool):
    h = _walk(call, *inputs, reverse=False)
    return h, h if save else None


def _backward(call: Call, inputs: tuple[Array, Array, Array], ids: None, h: Array, dh: Array):
    """The adjoint is the same recurrence backwards in time, as in the chunked form."""
    a, _, state = inputs
    g = _walk(call, *same_axes((jnp.roll(a, -1, axis=1), dh, jnp.zeros_like(state))), reverse=True)
    return g * jnp.concatenate([state[:, None], h[:, :-1]], axis=1), g, g[:, 0] * a[:, 0]


def _plain(call: Call, inputs: tuple[Array, Array, Array], ids: None) -> Array:
    return chunked.solve(*inputs, None)


_kernel = differentiable(_forward, _backward, _plain)
