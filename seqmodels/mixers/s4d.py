"""S4D (Gu et al. 2022, arXiv:2206.11893): every channel is a diagonal linear system with complex states.

``x' = A x + B u``, ``y = 2 Re(C x) + D u`` with ``A = -exp(log_A_real) + i A_imag [D,N/2]``, one of each conjugate
pair, and a step size per channel. Then ``GELU`` and a gated linear unit, as in the published blocks. One call runs as a
convolution inside chunks with the state carried between them (`ops.linear_ssm`), a single token as one step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers.param import param
from seqmodels.mixers import parts, state_space
from seqmodels.mixers.base import Context, Cursor, Mixer
from seqmodels.mixers.state_space import StateSpaceConfig, StateSpaceState
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


class S4D(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `S4DConfig`."""

    cfg: S4DConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: StateSpaceState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, StateSpaceState, dict[str, Any]]:
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        a, b, c = self._system()
        u = parts.wide(x)
        before = state_space.to_complex(entry.carried(held.memory))
        y, after = ops.linear_ssm(u, a, b, 2 * c, state=before, segment_ids=segment_ids)
        out = state_space.gated_linear_unit(self, y + state_space.skip(self) * u)
        return out, StateSpaceState(entry.cursor, state_space.to_parts(after)), {}

    def _system(self) -> tuple[Array, Array, Array]:
        """The discrete system: Ā, B̄ and C ``[D,N/2]``, complex."""
        cfg, half = self.cfg, self.cfg.state_size // 2
        A, B = hippo.diagonal(cfg.init, cfg.state_size)
        count = cfg.n_ssm or self.dim
        axes = ("heads", None)

        def own(name: str, value: np.ndarray, *last: int) -> Array:
            init, shape = state_space.constant(value), (count, half, *last)
            held = param(self, name, init, shape, (*axes, *[None] * len(last)), self.param_dtype)
            return jnp.tile(parts.wide(held), (self.dim // count, *[1] * (1 + len(last))))

        eigenvalues = -jnp.exp(own("log_A_real", np.log(-A.real))) + 1j * own("A_imag", A.imag)
        inputs = state_space.to_complex(own("B", state_space.in_parts(B), 2))
        normal = nn.initializers.normal(0.5**0.5)
        outputs = param(self, "C", normal, (self.dim, half, 2), (*axes, None), self.param_dtype)
        dt = state_space.steps(self, "log_dt", self.dim)
        a, b = hippo.discretize_diagonal(eigenvalues, inputs, dt[:, None], cfg.discretization)
        return a, b, state_space.to_complex(parts.wide(outputs))

    def init_state(self, batch: int, max_length: int | None = None) -> StateSpaceState:
        shape = (batch, self.dim, self.cfg.state_size // 2, 2)
        return StateSpaceState(Cursor.zeros(batch), jnp.zeros(shape, jnp.float32))
