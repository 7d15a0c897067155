"""S5 (Smith et al. 2023, arXiv:2208.04933): one diagonal linear system with complex states for all channels together.

``x' = Λ x + B u``, ``y = 2 Re(C x) + D u`` with ``Λ [N/2]``, one of each conjugate pair and a step size each,
``B [N/2,D]`` and ``C [D,N/2]``; the recurrence is one elementwise scan (`ops.linear_scan`). Then
``gelu(y) * sigmoid(W gelu(y))``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers.param import param
from seqmodels.mixers import parts, state_space
from seqmodels.mixers.base import Context, Cursor
from seqmodels.mixers.state_space import MIN_DECAY, StateSpaceConfig, StateSpaceMixer, StateSpaceState
from seqmodels.ops import hippo


@dataclasses.dataclass(frozen=True)
class S5Config(StateSpaceConfig):
    """Options of `S5`."""

    state_size: int = 256
    """States N of the layer, both halves of conjugate pairs counted."""
    num_blocks: int = 8
    """Blocks J of the initial Λ, each the normal part of HiPPO-LegS of size N / J."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """How the continuous system becomes steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts.require_positive(self, "num_blocks")
        parts.divide(self, "num_blocks", self.num_blocks, "state_size / 2", self.state_size // 2)
        parts.require_choice(self, "discretization", ("zoh", "bilinear"))

    @classmethod
    def tiny(cls) -> S5Config:
        return cls(state_size=8, num_blocks=2, dt_min=0.1, dt_max=1.0)

    def block(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues ``[n/2]`` and eigenvectors ``[n,n/2]`` of one initial block, n = N / J."""
        eigenvalues, _, _, vectors = hippo.nplr("legs", self.state_size // self.num_blocks)
        return eigenvalues, vectors

    def make(self, dim: int, **kwargs: Any) -> S5:
        return S5(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        return 4.0 * dim * self.state_size + 4.0 * self.state_size + 2.0 * dim * dim


class S5(StateSpaceMixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `S5Config`."""

    cfg: S5Config

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: StateSpaceState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, StateSpaceState | None, dict[str, Any]]:
        held = self.held(x.shape[0], state)
        entry = held.cursor.enter(segment_ids, x.shape[1])
        a, B = self._system()
        u = parts.wide(x)
        before = state_space.to_complex(entry.carried(held.memory))
        y, after = _run(a, B, self._readout("C"), u, before, segment_ids)
        after = StateSpaceState(entry.cursor, state_space.to_parts(after))
        if self.cfg.bidirectional:
            C = self._readout("C_backward")
            run = lambda u, ids: _run(a, B, C, u, None, ids)[0]  # noqa: E731
            y, after = y + state_space.from_the_future(run, u, segment_ids, strict=False), None
        return state_space.gated_unit(self, y + state_space.skip(self) * u), after, {}

    def _system(self) -> tuple[Array, Array]:
        """The discrete system: Λ̄ ``[N/2]`` and B̄ ``[N/2,D]``, complex."""
        cfg, half = self.cfg, self.cfg.state_size // 2
        eigenvalues, vectors = cfg.block()
        repeated = np.tile(eigenvalues, cfg.num_blocks)

        def own(name: str, init: parts.Init, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Array:
            return parts.wide(param(self, name, init, shape, axes, self.param_dtype))

        real = own("Lambda_re", state_space.constant(np.real(repeated)), (half,), ("heads",))
        imag = own("Lambda_im", state_space.constant(np.imag(repeated)), (half,), ("heads",))
        B = own("B", _input_init(vectors), (half, self.dim, 2), ("heads", "embed", None))
        dt = state_space.steps(self, "log_step", half)
        eigenvalues = jnp.minimum(real, -MIN_DECAY) + 1j * imag
        a, gain = hippo.discretize_diagonal(eigenvalues, 1.0, dt, cfg.discretization)
        return jnp.asarray(a), jnp.asarray(gain)[:, None] * state_space.to_complex(B)

    def _readout(self, name: str) -> Array:
        """``C [D,N/2]``, complex, from the parameter `name`."""
        shape, axes = (self.dim, self.cfg.state_size // 2, 2), ("embed", "heads", None)
        return state_space.to_complex(
            parts.wide(param(self, name, _output_init(self.cfg.block()[1]), shape, axes, self.param_dtype))
        )

    def zeros(self, batch: int) -> StateSpaceState:
        shape = (batch, self.cfg.state_size // 2, 2)
        return StateSpaceState(Cursor.zeros(batch), jnp.zeros(shape, jnp.float32))


def _run(a: Array, B: Array, C: Array, u: Array, state: Array | None, segment_ids: Array | None) -> tuple[Array, Array]:
    """``2 Re(C h)`` ``[B,T,D]`` and the last state of the system driven by ``u [B,T,D]``."""
    driven = jax.lax.complex(u @ B.real.T, u @ B.imag.T)  # [B,T,N/2]
    h, after = ops.linear_scan(a, driven, state=state, segment_ids=segment_ids)
    return 2 * (h.real @ C.real.T - h.imag @ C.imag.T), after


def _input_init(vectors: np.ndarray) -> parts.Init:
    """``B [N/2,D,2]``: ``V^*`` of a normal matrix of variance ``1 / D``, block by block."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        n, dim = vectors.shape[0], shape[1]
        real = jax.random.normal(key, (2 * shape[0] // n, n, dim), dtype) / math.sqrt(dim)
        turned = [
            jnp.einsum("nk,jnd->jkd", jnp.asarray(part, dtype), real) for part in (np.real(vectors), -np.imag(vectors))
        ]
        return jnp.stack(turned, axis=-1).reshape(shape)

    return init


def _output_init(vectors: np.ndarray) -> parts.Init:
    """``C [D,N/2,2]``: a complex normal matrix of variance ``1 / N`` times V, block by block."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        n, dim, half = vectors.shape[0], *shape[:2]
        real, imag = jax.random.normal(key, (2, dim, 2 * half // n, n), dtype) / math.sqrt(4 * half)
        re, im = (jnp.asarray(part, dtype) for part in (np.real(vectors), np.imag(vectors)))
        turned = (real @ re - imag @ im, real @ im + imag @ re)
        return jnp.stack(turned, axis=-1).reshape(shape)

    return init
