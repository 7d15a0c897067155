"""S4 (Gu et al. 2021, arXiv:2111.00396): every channel is a linear system, diagonal plus low rank, with complex states.

``x' = (diag(A) - P P^*) x + B u``, ``y = 2 Re(C x) + D u`` over both halves of conjugate pairs, one of which is stored;
``A = -exp(log_A_real) + i A_imag``, and a step size per channel, by the bilinear rule. Tying both sides of the low-rank
term keeps the system stable (arXiv:2202.09729). Then ``GELU`` and a gated linear unit, as in the published blocks.

One call runs as a convolution inside chunks, with the state of the dense discrete system carried between them
(`ops.linear_ssm`), or, from the zero state, as the convolution with the whole kernel (`ops.dplr_kernel`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.mixers import parts, state_space
from seqmodels.mixers.base import Context, Cursor
from seqmodels.mixers.state_space import StateSpaceConfig, StateSpaceMixer, StateSpaceState
from seqmodels.ops import hippo
from seqmodels.ops.linear_ssm.chunked import CHUNK


@dataclasses.dataclass(frozen=True)
class S4Config(StateSpaceConfig):
    """Options of `S4`."""

    measure: Literal["legs", "legt", "fourier"] = "legs"
    """HiPPO measure of the initial system."""
    n_ssm: int | None = 1
    """Distinct triples (A, P, B), which the channels share in turn; None: every channel has its own."""
    mode: Literal["chunked", "convolution"] = "chunked"
    """How a call without a state runs; the other one is for comparison. Calls with a state are always chunked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts.require_positive(self, "n_ssm")
        parts.require_choice(self, "measure", ("legs", "legt", "fourier"))
        parts.require_choice(self, "mode", ("chunked", "convolution"))

    @classmethod
    def tiny(cls) -> S4Config:
        return cls(state_size=4, dt_min=0.1, dt_max=1.0)

    def make(self, dim: int, **kwargs: Any) -> S4:
        if self.n_ssm is not None:
            parts.divide(self, "n_ssm", self.n_ssm, "the model width", dim)
        return S4(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        N = self.state_size
        return dim * (2.0 * CHUNK + 4.0 * N + 2.0 * N * N / CHUNK + 4.0 * dim)


class S4(StateSpaceMixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `S4Config`."""

    cfg: S4Config

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
        A, P, B, dt = self._system()
        u = parts.wide(x)
        system = (A, P, B, state_space.readout(self, "C"), dt)
        memory = entry.carried(held.memory)
        y, after = ops.linear_ssm(u, *ops.dplr_system(*system), state=memory, segment_ids=segment_ids)
        after = StateSpaceState(entry.cursor, after)
        if self.cfg.mode == "convolution" and state is None and x.shape[1]:
            y, _ = ops.long_conv(u, ops.dplr_kernel(*system, x.shape[1]), segment_ids=segment_ids)
        if self.cfg.bidirectional:
            back = ops.dplr_system(A, P, B, state_space.readout(self, "C_backward"), dt)
            run = lambda u, ids: ops.linear_ssm(u, *back, segment_ids=ids)[0]  # noqa: E731
            y, after = y + state_space.from_the_future(run, u, segment_ids, strict=True), None
        return state_space.gated_linear_unit(self, y + state_space.skip(self) * u), after, {}

    def _system(self) -> tuple[Array, Array, Array, Array]:
        """The continuous system: A ``[D,N/2]``, P ``[rank,D,N/2]``, B, complex, and step sizes ``[D]``."""
        A, P, B, _ = hippo.nplr(self.cfg.measure, self.cfg.state_size)
        own = functools.partial(state_space.of_channels, self, self.cfg.n_ssm)
        eigenvalues = state_space.eigenvalues(self, self.cfg.n_ssm, A)
        return eigenvalues, own("P", P), own("B", B), state_space.steps(self, "log_dt", self.dim)

    def zeros(self, batch: int) -> StateSpaceState:
        return StateSpaceState(Cursor.zeros(batch), jnp.zeros((batch, self.dim, self.cfg.state_size), jnp.float32))
