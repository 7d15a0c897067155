"""S4D (Gu et al. 2022, arXiv:2206.11893): every channel is a diagonal linear system with complex states.

``x' = A x + B u``, ``y = 2 Re(C x) + D u`` with ``A = -exp(log_A_real) + i A_imag [D,N/2]``, one of each conjugate
pair, and a step size per channel. Then ``GELU`` and a gated linear unit, as in the published blocks. One call runs as a
convolution inside chunks with the state carried between them (`ops.linear_ssm`), a single token as one step.
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
class S4DConfig(StateSpaceConfig):
    """Options of `S4D`."""

    init: Literal["lin", "inv", "legs", "fout"] = "legs"
    """Initial A and B, see `hippo.diagonal`."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """How the continuous system becomes steps."""
    n_ssm: int | None = None
    """Distinct pairs (A, B), which the channels share in turn; None: every channel has its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts.require_positive(self, "n_ssm")
        parts.require_choice(self, "init", ("lin", "inv", "legs", "fout"))
        parts.require_choice(self, "discretization", ("zoh", "bilinear"))

    @classmethod
    def tiny(cls) -> S4DConfig:
        return cls(state_size=4, dt_min=0.1, dt_max=1.0)

    def make(self, dim: int, **kwargs: Any) -> S4D:
        if self.n_ssm is not None:
            parts.divide(self, "n_ssm", self.n_ssm, "the model width", dim)
        return S4D(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        return dim * (2.0 * CHUNK + 4.0 * self.state_size + 4.0 * dim)


class S4D(StateSpaceMixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `S4DConfig`."""

    cfg: S4DConfig

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
        a, b = self._system()
        u = parts.wide(x)
        before = state_space.to_complex(entry.carried(held.memory))
        y, after = ops.linear_ssm(u, a, b, 2 * state_space.readout(self, "C"), state=before, segment_ids=segment_ids)
        after = StateSpaceState(entry.cursor, state_space.to_parts(after))
        if self.cfg.bidirectional:
            c = 2 * state_space.readout(self, "C_backward")
            run = lambda u, ids: ops.linear_ssm(u, a, b, c, segment_ids=ids)[0]  # noqa: E731
            y, after = y + state_space.from_the_future(run, u, segment_ids, strict=True), None
        return state_space.gated_linear_unit(self, y + state_space.skip(self) * u), after, {}

    def _system(self) -> tuple[Array, Array]:
        """The discrete system: Ā and B̄ ``[D,N/2]``, complex."""
        cfg = self.cfg
        A, B = hippo.diagonal(cfg.init, cfg.state_size)
        own = functools.partial(state_space.of_channels, self, cfg.n_ssm)
        eigenvalues = state_space.eigenvalues(self, cfg.n_ssm, A)
        dt = state_space.steps(self, "log_dt", self.dim)
        a, b = hippo.discretize_diagonal(eigenvalues, own("B", B), dt[:, None], cfg.discretization)
        return jnp.asarray(a), jnp.asarray(b)

    def zeros(self, batch: int) -> StateSpaceState:
        shape = (batch, self.dim, self.cfg.state_size // 2, 2)
        return StateSpaceState(Cursor.zeros(batch), jnp.zeros(shape, jnp.float32))
