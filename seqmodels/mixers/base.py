"""The mixer contract: one call for training, prefill and decoding, with state in and state out.

A mixer is a pure linen module. ``mixer.apply(params, x, state, segment_ids, context) -> (y, state, aux)``; see
``docs/design.md``. Every state is a NamedTuple whose first field is a `Cursor`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.ops import segments

T = TypeVar("T")
Shaped = TypeVar("Shaped", "SharedParam", Array)


class Cursor(NamedTuple):
    """Where a sequence is: what a mixer must know of the tokens before this call."""

    position: Array  # [B] int32: tokens of the current document seen so far
    segment: Array  # [B] int32: id of the current document, 0 before the first token

    @staticmethod
    def zeros(batch: int) -> Cursor:
        return Cursor(jnp.zeros(batch, jnp.int32), jnp.zeros(batch, jnp.int32))

    def enter(self, segment_ids: Array | None, length: int) -> Entry:
        """Positions of the `length` tokens of a call, and which rows start a new document with it.

        ``segment_ids=None`` continues the current document (the first one has id 1).
        """
        if segment_ids is None:
            positions = self.position[:, None] + jnp.arange(length, dtype=jnp.int32)
            segment = jnp.maximum(self.segment, 1) if length else self.segment
            return Entry(positions, None, None, Cursor(self.position + length, segment))
        segment_ids = segment_ids.astype(jnp.int32)
        if length == 0:
            return Entry(segment_ids, segment_ids, None, self)
        real = segment_ids != 0
        first = jnp.take_along_axis(segment_ids, jnp.argmax(real, axis=1)[:, None], axis=1)[:, 0]  # 0: all padding
        fresh = (self.segment != 0) & (first != 0) & (first != self.segment)
        held = jnp.where(fresh, 0, self.position)
        count = jnp.cumsum(real.astype(jnp.int32), axis=1)  # real tokens up to and including here
        begun = jax.lax.cummax(jnp.where(segments.starts(segment_ids), count - 1, 0), axis=1)
        document = segments.document_index(segment_ids)
        seen = jnp.where(
            document == 0, held[:, None] + count, count - begun
        )  # of the current document, this one included
        positions = jnp.where(real, seen - 1, 0)
        newest = segments.last_real(segment_ids)[:, -1]
        after = Cursor(seen[:, -1], jnp.where(newest == 0, self.segment, newest))
        return Entry(positions, segment_ids, fresh, after)


class Entry(NamedTuple):
    """What `Cursor.enter` tells about a call."""

    positions: Array  # [B,T] int32: position within the document, 0 at padding
    segment_ids: Array | None  # [B,T] int32
    fresh: Array | None  # [B] bool: the carried state belongs to a finished document
    cursor: Cursor  # after the call

    def carried(self, state: T) -> T:
        """`state` with the rows of finished documents set to zero."""
        if self.fresh is None:
            return state
        fresh = self.fresh
        keep = lambda leaf: jnp.where(fresh.reshape(-1, *[1] * (leaf.ndim - 1)), jnp.zeros_like(leaf), leaf)  # noqa: E731
        return jax.tree.map(keep, state)


class Context(NamedTuple):
    """What the stack tells a mixer."""

    layer: Any = 0  # index of the layer, a Python int or a traced int32
    depth: int = 1  # number of layers
    shared: dict[str, Array] | None = None  # model-level parameters and values handed up the stack


class SharedParam(NamedTuple):
    """A parameter that a mixer wants the model to own, once for all its layers."""

    shape: tuple[int, ...]
    init: Callable[..., Array]
    axes: tuple[str | None, ...]


def merged(declared: Iterable[dict[str, Shaped]]) -> dict[str, Shaped]:
    """One dict of the parameters or values that several mixers declare for ``shared``.

    Raises:
      UserError: two mixers want different shapes under one name.
    """
    found: dict[str, Shaped] = {}
    for name, value in (item for names in declared for item in names.items()):
        if found.setdefault(name, value).shape != value.shape:
            raise UserError(
                f"shared {name!r} is {found[name].shape} for one mixer of the model and {value.shape} for another; "
                "give both configs the same sizes"
            )
    return found


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """Base of every mixer's config: a frozen dataclass with the paper's names and defaults."""

    def make(self, dim: int, **kwargs: Any) -> Mixer:
        """The module for model width `dim`. Keywords: ``dtype``, ``param_dtype``, ``name``."""
        raise NotImplementedError(f"{type(self).__name__} must define make(dim, **kwargs)")

    @classmethod
    def tiny(cls) -> MixerConfig:
        """A small instance for tests (model width 32)."""
        return cls()

    @property
    def label(self) -> str:
        """Short name for tables: the class without ``Config``, with the window if there is one."""
        name = type(self).__name__.removesuffix("Config")
        window = getattr(self, "window", None)
        return f"{name}({window})" if window else name

    @property
    def causal(self) -> bool:
        """Whether outputs depend on no later input; language models refuse a mixer that says no."""
        return True

    def shared_params(self, dim: int, depth: int) -> dict[str, SharedParam]:
        """Model-level parameters that this mixer reads from ``context.shared``."""
        return {}

    def shared_values(self, batch: int, length: int, dtype: Any) -> dict[str, Array]:
        """Values that layers of this mixer hand up the stack in ``context.shared``, as they are below the first layer.

        They are made anew for every call of a model on `length` tokens.
        """
        return {}

    def flops_per_token(self, dim: int, length: int) -> float:
        """Forward FLOPs per token (a multiply-add counts two) in a sequence of `length` tokens."""
        raise NotImplementedError(f"{type(self).__name__} must define flops_per_token(dim, length)")


class Mixer(nn.Module):
    """Base of every mixer. Subclasses define ``__call__`` and ``init_state``."""

    cfg: Any
    dim: int
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32

    def __call__(
        self,
        x: Array,
        state: Any = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, Any, dict[str, Any]]:
        """Mix ``x [B,T,D]`` along time: ``(y [B,T,D], state, aux)``."""
        raise NotImplementedError

    def init_state(self, batch: int, max_length: int | None = None) -> Any:
        """The zero state; `max_length` bounds the tokens that a full-attention cache must hold."""
        raise NotImplementedError

    def state_bytes(self, max_length: int | None = None) -> int:
        """Bytes of state per sequence."""
        shapes = jax.eval_shape(lambda: self.init_state(1, max_length))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def discover() -> dict[str, type[MixerConfig]]:
    """Every mixer config class defined in ``seqmodels.mixers`` that can make a mixer, by class name."""
    import seqmodels.mixers as package

    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in vars(module).items():
            own = isinstance(value, type) and issubclass(value, MixerConfig) and value.__module__ == module.__name__
            if own and value.make is not MixerConfig.make:
                found[name] = value
    return dict(sorted(found.items()))
