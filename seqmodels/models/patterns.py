"""Patterns of hybrid models: which block stands at which layer.

A pattern is a tuple of `BlockConfig` that a model repeats to its depth. Inside a layer, `mixers.Parallel` mixes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from seqmodels.errors import UserError
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers.base import MixerConfig
from seqmodels.models.block import BlockConfig

Pattern = tuple[BlockConfig, ...]


def by_ratio(linear: BlockConfig, full: BlockConfig, ratio: int | None) -> Pattern:
    """`ratio` linear blocks, then a full one: 3 gives three to one, 0 only full blocks, ``None`` only linear ones.

    Raises:
      UserError: `ratio` is negative, or no whole number.
    """
    if ratio is None:
        return (linear,)
    if ratio != int(ratio):
        raise UserError(f"ratio={ratio} linear blocks to a full one is not a whole number; use at_layers or evenly")
    if ratio < 0:
        raise UserError(f"ratio={ratio} linear blocks to a full one must not be negative; use None for linear only")
    return (linear,) * int(ratio) + (full,)


def at_layers(linear: BlockConfig, full: BlockConfig, depth: int, layers: Collection[int]) -> Pattern:
    """Full blocks at the given layers (0 is the lowest) of `depth`, linear ones elsewhere; the shortest such pattern.

    Raises:
      UserError: a layer lies outside of the model, or there is none.
    """
    if depth < 1:
        raise UserError(f"depth={depth} leaves no layers; use at least 1")
    outside = sorted(layer for layer in layers if not 0 <= layer < depth)
    if outside:
        raise UserError(f"layers={outside} are not among 0 to {depth - 1} of depth={depth}; lower them")
    return shortest([full if layer in set(layers) else linear for layer in range(depth)])


def evenly(linear: BlockConfig, full: BlockConfig, depth: int, count: int) -> Pattern:
    """`count` full blocks, at the upper ends of equal parts of the model.

    Raises:
      UserError: more full blocks than layers, or fewer than none.
    """
    if not 0 <= count <= depth:
        raise UserError(f"count={count} full blocks do not fit depth={depth}; use 0 to {depth}")
    return at_layers(linear, full, depth, {depth * (i + 1) // count - 1 for i in range(count)})


def serial(*mixers: MixerConfig, mlp: MLPConfig | None) -> Pattern:
    """Mixers in turn, each followed by an MLP.

    ``serial(Mamba2Config(), AttentionConfig(window=2048), mlp=MLPConfig())`` is the sandwich of Samba (Ren et al. 2024,
    arXiv:2406.07522) with Mamba-2 in the place of Mamba: recurrence, MLP, sliding-window attention, MLP.
    """
    return tuple(BlockConfig(mixer, mlp) for mixer in mixers)


def shortest(blocks: Sequence[BlockConfig]) -> Pattern:
    """The shortest pattern that repeats to exactly `blocks`: whole periods are compiled once."""
    depth, whole = len(blocks), tuple(blocks)
    return next(whole[:n] for n in range(1, depth + 1) if whole[:n] * (depth // n) == whole)
