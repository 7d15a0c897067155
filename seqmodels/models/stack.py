"""A pattern of blocks repeated to a depth: whole periods are scanned, a remainder is unrolled.

Compile time therefore does not grow with depth. Parameters of scanned blocks carry a leading axis named ``layers``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.models.block import Block, BlockConfig

REMAT_POLICIES = {
    "full": None,  # keep block inputs only
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the outputs of weight matrices
}


class StackState(NamedTuple):
    """States of all blocks: `periods[i]` is for pattern position i, stacked over periods; `tail` the rest."""

    periods: tuple[Any, ...]
    tail: tuple[Any, ...]


def split_depth(depth: int, pattern: tuple[BlockConfig, ...]) -> tuple[int, tuple[BlockConfig, ...]]:
    """How often the whole pattern repeats in `depth` layers, and the blocks that remain."""
    periods, rest = divmod(depth, len(pattern))
    return periods, pattern[:rest]


def reduce_aux(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """One dict of scalars from the auxiliary outputs of many layers: ``loss/…`` are summed, ``stat/…`` averaged.

    ``pool/NAME``, a pair of vectors ``[2,n]`` in every layer, is averaged over the layers; the inner product of the two
    averages becomes ``loss/NAME``. All other values are scalars. An array may have a leading axis of layers.
    """
    names = sorted({name for part in parts for name in part})
    reduced = {}
    for name in names:
        values = [part[name] for part in parts if name in part]
        if name.startswith("pool/"):
            mean = jnp.concatenate([v.reshape(-1, *v.shape[-2:]) for v in values]).mean(axis=0)
            reduced[name.replace("pool/", "loss/", 1)] = jnp.sum(mean[0] * mean[1])
            continue
        gathered = jnp.concatenate([jnp.ravel(v) for v in values])
        reduced[name] = gathered.sum() if name.startswith("loss/") else gathered.mean()
    return reduced


class Period(nn.Module):
    """One pass through consecutive blocks."""

    blocks: tuple[BlockConfig, ...]
    dim: int
    depth: int
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, carry: tuple[Array, dict[str, Array]], states: tuple[Any, ...], first: Any, segment_ids: Array | None
    ) -> tuple[tuple[Array, dict[str, Array]], tuple[tuple[Any, ...], list[dict[str, Array]]]]:
        """``carry = (x [B,T,D], shared)``; `first` is the layer index of the first block."""
        kind = Block
        if self.remat != "none":
            kind = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        x, shared = carry
        new_states, auxes = [], []
        for i, (cfg, state) in enumerate(zip(self.blocks, states, strict=True)):
            block = kind(cfg, self.dim, self.depth, self.dtype, self.param_dtype, name=f"block_{i}")
            x = nn.with_logical_constraint(x, ("batch", "length", None))
            x, state, aux, shared = block(x, state, segment_ids, first + i, shared)
            new_states.append(state)
            auxes.append(aux)
        return (x, shared), (tuple(new_states), auxes)


class Stack(nn.Module):
    """The pattern repeated to `depth` layers."""

    pattern: tuple[BlockConfig, ...]
    dim: int
    depth: int
    remat: str = "none"
    scan: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, state: StackState | None, segment_ids: Array | None, shared: dict[str, Array]
    ) -> tuple[Array, StackState | None, dict[str, Array]]:
        """``x [B,T,D]`` -> ``(x, state, aux)``; a state of ``None`` comes back as ``None``."""
        count, rest = split_depth(self.depth, self.pattern)
        period = len(self.pattern)
        options = {
            "dim": self.dim,
            "depth": self.depth,
            "remat": self.remat,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        carry, auxes, periods, tail = (x, shared), [], (None,) * period, (None,) * len(rest)
        if state is not None:
            periods, tail = state.periods, state.tail
        if count:
            carry, (periods, aux) = self._repeat(count, options)(
                carry, periods, jnp.arange(count, dtype=jnp.int32) * period, segment_ids
            )
            auxes += aux
        if rest:
            run = Period(blocks=rest, name="tail", **options)
            carry, (tail, aux) = run(carry, tail, count * period, segment_ids)
            auxes += aux
        return carry[0], (None if state is None else StackState(periods, tail)), reduce_aux(auxes)

    def _repeat(self, count: int, options: dict[str, Any]) -> nn.Module:
        """`Period` scanned over its repetitions; ``scan=False`` unrolls the loop but keeps the same parameters."""
        scanned = nn.scan(
            Period,
            variable_axes={"params": 0, "intermediates": 0},  # the second only while `train.diagnose` looks for NaN
            split_rngs={"params": True},
            in_axes=cast(Any, (0, 0, nn.broadcast)),  # flax annotates an int, and documents a tree
            out_axes=0,
            length=count,
            unroll=1 if self.scan else count,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(blocks=self.pattern, name="periods", **options)

    def init_state(self, batch: int, max_length: int | None = None) -> StackState:
        """Zero states of all blocks."""
        count, rest = split_depth(self.depth, self.pattern)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        zero = lambda cfg: cfg.make_mixer(self.dim, parent=None, **types).init_state(batch, max_length)  # noqa: E731
        repeat = lambda tree: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)  # noqa: E731
        return StackState(
            tuple(repeat(zero(cfg)) if count else None for cfg in self.pattern), tuple(zero(cfg) for cfg in rest)
        )
