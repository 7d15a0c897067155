"""H3 (Fu et al. 2022, arXiv:2212.14052): a shift and a diagonal state-space model between multiplications.

``q, k, v`` are projections of the input. The shift system turns keys into a weighted sum of the last N ones,
``k' = shift(k)``; in every head the diagonal system remembers the products ``k'_t v_tᵀ [K,K]``, entry by entry, and the
query reads: ``o_t = q_tᵀ diag(k' vᵀ)_t``, ``y = W_o o``. Both systems are fixed in time, the products are not, so that
what is written and what is read depends on the tokens: a linear attention with a learned kernel over distances.

The diagonal system is S4D's, ``x' = A x + B u``, one per head, shared by the entries of its matrix; both systems have a
skip. Departures: the input map of the shift system stays the first unit vector, where the released code trains it, and
the diagonal system is discretised by zero-order hold, as S4D is here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.param import param
from seqmodels.layers.short_conv import conv_init
from seqmodels.mixers import parts, state_space
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig
from seqmodels.ops import hippo
from seqmodels.ops.linear_ssm.chunked import CHUNK


@dataclasses.dataclass(frozen=True)
class H3Config(MixerConfig):
    """Options of `H3`."""

    state_size: int = 64
    """States N of the diagonal system (both halves of conjugate pairs), and taps of the shift system."""
    head_dim: int = 1
    """Size K of a head, whose memory is a matrix ``[K,K]`` of such systems."""
    init: Literal["lin", "inv", "legs", "fout"] = "lin"
    """Initial A and B of the diagonal system, see `hippo.diagonal`."""
    dt_min: float = 1e-3
    """Smallest initial step size: a state remembers about ``1 / dt`` tokens."""
    dt_max: float = 0.1
    """Largest initial step size."""

    rate: ClassVar[float] = 1.0  # of the step sizes: a shift is one of tokens, at any sampling rate

    def __post_init__(self):
        parts.require_positive(self, "state_size", "head_dim", "dt_min", "dt_max")
        parts.require_choice(self, "init", ("lin", "inv", "legs", "fout"))
        if self.state_size % 2:
            raise UserError(f"H3Config.state_size={self.state_size} is odd, expected conjugate pairs; use an even size")
        if self.dt_min > self.dt_max:
            raise UserError(f"H3Config.dt_min={self.dt_min} exceeds dt_max={self.dt_max}; swap them")

    @classmethod
    def tiny(cls) -> H3Config:
        return cls(state_size=4, head_dim=2, dt_min=0.1, dt_max=1.0)

    def num_heads(self, dim: int) -> int:
        """Heads H for model width `dim`."""
        return parts.divide(self, "head_dim", self.head_dim, "the model width", dim)

    def make(self, dim: int, **kwargs: Any) -> H3:
        self.num_heads(dim)
        return H3(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        entries = dim * self.head_dim
        return 8.0 * dim * dim + 2.0 * dim * self.state_size + entries * (2.0 * CHUNK + 4.0 * self.state_size + 6)


class H3State(NamedTuple):
    """The keys that the shift system holds, oldest first, and the states of the diagonal one."""

    cursor: Cursor
    keys: Array  # [B,N-1,D] float32
    memory: Array  # [B,D*K,N/2,2] float32, real and imaginary part


class H3(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `H3Config`."""

    cfg: H3Config

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: H3State | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, H3State, dict[str, Any]]:
        H = self.cfg.num_heads(self.dim)
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        q, k, v = (parts.wide(parts.into(self, f"{name}_proj", self.dim, use_bias=True)(x)) for name in "qkv")
        carried = None if state is None else entry.carried(held.keys)
        k, keys = ops.long_conv(k, self._shift(), state=carried, segment_ids=segment_ids)
        q, k, v = (parts.split(rows, H) for rows in (q, k, v))
        products = k[..., :, None] * v[..., None, :]
        a, b, c, skip = self._diagonal(H)
        before = state_space.to_complex(entry.carried(held.memory))
        flat = products.reshape(*x.shape[:2], self.dim * self.cfg.head_dim)
        y, after = ops.linear_ssm(flat, a, b, c, state=before, segment_ids=segment_ids)
        memory = y.reshape(products.shape) + skip[:, None, None] * products
        o = jnp.einsum("bthk,bthkv->bthv", q, memory)
        out = parts.out_of(self, "out_proj", use_bias=True)(parts.merge(o).astype(self.dtype))
        return out, H3State(entry.cursor, keys, state_space.to_parts(after)), {}

    def _shift(self) -> Array:
        """The taps ``[N,D]`` of the shift system, the current key's first, where its skip is added."""
        shape, types = (self.cfg.state_size, self.dim), {"dtype": self.param_dtype}
        taps = param(self, "shift", conv_init, shape, (None, "heads"), **types)
        skip = param(self, "shift_skip", nn.initializers.normal(1.0), (self.dim,), ("heads",), **types)
        return parts.wide(taps).at[0].add(parts.wide(skip))

    def _diagonal(self, heads: int) -> tuple[Array, Array, Array, Array]:
        """The diagonal system: Ā, B̄ and 2 C ``[D*K,N/2]``, complex, entry by entry; and its skip ``[H]``."""
        cfg, half = self.cfg, self.cfg.state_size // 2
        A, B = hippo.diagonal(cfg.init, cfg.state_size)
        eigenvalues = state_space.eigenvalues(self, heads, A)[:heads]  # the helpers repeat the heads' for every channel
        inputs = state_space.of_channels(self, heads, "B", B)[:heads]
        dt = state_space.steps(self, "log_dt", heads)
        system = hippo.discretize_diagonal(eigenvalues, inputs, dt[:, None], "zoh")
        axes, normal = ("heads", None, None), nn.initializers.normal
        c = state_space.to_complex(
            parts.wide(param(self, "C", normal(0.5**0.5), (heads, half, 2), axes, self.param_dtype))
        )
        a, b, c = (jnp.repeat(jnp.asarray(row), cfg.head_dim**2, axis=0) for row in (*system, 2 * c))
        skip = param(self, "D", normal(1.0), (heads,), ("heads",), self.param_dtype)
        return a, b, c, parts.wide(skip)

    def init_state(self, batch: int, max_length: int | None = None) -> H3State:
        N, entries = self.cfg.state_size, self.dim * self.cfg.head_dim
        keys = jnp.zeros((batch, N - 1, self.dim), jnp.float32)
        return H3State(Cursor.zeros(batch), keys, jnp.zeros((batch, entries, N // 2, 2), jnp.float32))
