"""Pieces that several mixers share: projections, convolutions in front of them, and initialisations of decays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.short_conv import ShortConv
from seqmodels.mixers.base import Mixer

Init = Callable[..., Array]


def divide(owner: object, field: str, parts: int, what: str, whole: float) -> int:
    """``whole / parts`` as an integer.

    Raises:
      UserError: it is not a positive integer. The message names `owner`'s class, its `field` and `what` is divided.
    """
    if parts < 1 or not parts <= whole < math.inf or whole != int(whole) or int(whole) % parts:
        name = type(owner).__name__
        raise UserError(f"{name}.{field}={parts} does not divide {what}={whole:g}; choose a divisor of it")
    return int(whole) // parts


def whole(owner: object, what: str, value: float) -> int:
    """`value` as a positive integer, or a `UserError` that says `what` of `owner` is none."""
    if not 1 <= value < math.inf or value != int(value):
        raise UserError(f"{type(owner).__name__}: {what}={value:g} is not a positive whole number; change a factor")
    return int(value)


class ExpandedHeads(Protocol):
    """A config whose heads share ``expand_k * dim`` key channels and ``expand_v * dim`` value channels."""

    @property
    def num_heads(self) -> int: ...
    @property
    def expand_k(self) -> float: ...
    @property
    def expand_v(self) -> float: ...


def head_sizes(cfg: ExpandedHeads, dim: int) -> tuple[int, int]:
    """Key and value size of a head for model width `dim`; raises a `UserError` where the heads do not divide."""
    return (
        divide(cfg, "num_heads", cfg.num_heads, "dim * expand_k", dim * cfg.expand_k),
        divide(cfg, "num_heads", cfg.num_heads, "dim * expand_v", dim * cfg.expand_v),
    )


def require_positive(owner: Any, *fields: str) -> None:
    """Raise a `UserError` for the first of the numeric `fields` of a config that is neither ``None`` nor positive, is
    infinite, or is a fraction where the config declares an integer."""
    for field in fields:
        value = getattr(owner, field)
        if value is not None and not 0 < value < math.inf:
            fix = "must be finite; give a number" if value == math.inf else "must be positive"
            raise UserError(f"{type(owner).__name__}.{field}={value} {fix}")
        require_whole(owner, field)


def require_time_constant(owner: Any) -> None:
    """Raise a `UserError` if the time constant ``tau`` of a config's neurons is below one token."""
    if owner.tau < 1:
        raise UserError(f"{type(owner).__name__}.tau={owner.tau} overshoots the input; use at least 1 token")


def require_whole(owner: Any, field: str) -> None:
    """Raise a `UserError` where `owner`, a config, declares an integer `field` and holds another number."""
    value = getattr(owner, field)
    declared = str(next(known.type for known in dataclasses.fields(owner) if known.name == field))
    if value is not None and "int" in declared and not isinstance(value, int):
        raise UserError(f"{type(owner).__name__}.{field}={value} is not a whole number; give an int")


def require_choice(owner: object, field: str, choices: Sequence[str]) -> None:
    """Raise a `UserError` unless the value of `field` is one of `choices`."""
    value = getattr(owner, field)
    if value not in choices:
        raise UserError(f"{type(owner).__name__}.{field}={value!r} is unknown, expected one of {', '.join(choices)}")


def into(mixer: Mixer, name: str, features: int, axis: str | None = "heads", **options: Any) -> Linear:
    """The projection `name` from the model width; `axis` is the logical name of its output."""
    types = {"dtype": mixer.dtype, "param_dtype": mixer.param_dtype}
    return Linear(features, axes=("embed", axis), name=name, **types, **options)


def out_of(mixer: Mixer, name: str = "o_proj", **options: Any) -> Linear:
    """The projection `name` back to the model width."""
    types = {"dtype": mixer.dtype, "param_dtype": mixer.param_dtype}
    return Linear(mixer.dim, axes=("heads", "embed"), name=name, **types, **options)


class LowRank(nn.Module):
    """``up(down(x))``: a projection of rank `rank`; only `up` may have a bias."""

    features: int
    rank: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Linear(self.rank, axes=("embed", None), name="down", **types)(x)
        return Linear(self.features, axes=(None, "heads"), use_bias=self.use_bias, name="up", **types)(x)


def split(x: Array, heads: int) -> Array:
    """[B,T,H*K] -> [B,T,H,K]"""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge(x: Array) -> Array:
    """[B,T,H,K] -> [B,T,H*K]"""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def wide(x: Array) -> Array:
    """`x` in the dtype of gates and decays: at least float32."""
    return x.astype(accumulate_dtype(x))


class Segments(NamedTuple):
    """Which sequence a token belongs to, as the ops have it."""

    ids: Array | None = None  # [B,T] int32, 0 is padding
    count: int | None = None  # num_segments: ids then name sequences with states of their own
    resets: Array | None = None  # [B,T] bool, with `count`: the token's sequence starts anew

    def forget(self, log_decay: Array | None, like: Array) -> Array | None:
        """`log_decay` ``[B,T,H(,K)]`` or ``None``, with nothing left at resets; `like` is any ``[B,T,H,·]``."""
        if self.resets is None:
            return log_decay
        rates = jnp.zeros(like.shape[:3], jnp.float32) if log_decay is None else log_decay
        return jnp.where(self.resets.reshape(*like.shape[:2], *[1] * (rates.ndim - 2)), FORGET, rates)


FORGET = -1e30
"""A log-decay whose exponential is 0, and which a mask of zeros can multiply."""


def silu_convs(mixer: Mixer, width: int | None, *names: str) -> list[ShortConv]:
    """The short convolutions ``<name>_conv1d`` of some streams; none when `width` is ``None``."""
    types = {"dtype": mixer.dtype, "param_dtype": mixer.param_dtype}
    init = nn.initializers.normal(0.02)
    return [] if width is None else [ShortConv(width, kernel_init=init, name=f"{n}_conv1d", **types) for n in names]


def silu_conv(
    convs: Sequence[ShortConv], streams: Sequence[Array], state: tuple[Array, ...], segments: Segments
) -> tuple[list[Array], tuple[Array, ...]]:
    """SiLU of a short causal convolution of every stream ``[B,T,·]``, or SiLU alone without `convs`.

    `state` holds one array per convolution; see `conv_state`.
    """
    if not convs:
        return [jax.nn.silu(x) for x in streams], ()
    done = [conv(x, before, *segments) for conv, x, before in zip(convs, streams, state, strict=True)]
    return [y for y, _ in done], tuple(after for _, after in done)


def conv_state(width: int | None, lead: tuple[int, ...], *channels: int) -> tuple[Array, ...]:
    """Zero states of `silu_conv`, one ``[*lead,W-1,D]`` float32 per stream."""
    return () if width is None else tuple(jnp.zeros((*lead, width - 1, size), jnp.float32) for size in channels)


def softplus_decay(x: Array, A_log: Array, dt_bias: Array) -> Array:
    """The log-decay ``-exp(A_log) softplus(x + dt_bias)`` of Mamba-2; the parameters broadcast to `x`."""
    rate, bias = (jnp.broadcast_to(z.astype(x.dtype), x.shape) for z in (jnp.exp(A_log), dt_bias))
    return -rate * jax.nn.softplus(x + bias)


def log_uniform_init(low: float, high: float) -> Init:
    """Logarithm of a uniform sample of ``(low, high)``: the usual ``A_log``."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        smallest = max(low, float(jnp.finfo(dtype).tiny))
        return jnp.log(jax.random.uniform(key, shape, dtype, smallest, high))

    return init


def dt_bias_init(dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4) -> Init:
    """Inverse softplus of a log-uniform step size in ``[dt_min, dt_max]``, not below `floor` (Mamba)."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        log_dt = jax.random.uniform(key, shape, dtype, math.log(dt_min), math.log(dt_max))
        dt = jnp.maximum(jnp.exp(log_dt), floor)
        return dt + jnp.log(-jnp.expm1(-dt))

    return init


def fan_in_uniform_init(scale: float = 1.0) -> Init:
    """Kernel ``[in,out]`` uniform in ``±scale / sqrt(in)``, PyTorch's default for linear layers."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        bound = scale / math.sqrt(shape[0])
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
