"""How the arrays of a channelwise recurrence lie in HBM for a TPU kernel, and how channels are cut into blocks.

=============  ======================================  ==========================================================
in the op      in the kernel                           because
=============  ======================================  ==========================================================
x, dt, a, ...  ``[B,T,D]``                             channels are lanes, a block of channels a block of columns
B, C           ``[B,G,chunks,N,C]``                    a token is a lane, so nothing is padded to 128 states
A              ``[N,D]``                               states lie along sublanes
state          ``[B,S,parts,blocks,R,M]``              likewise; R rows of M channels per block
=============  ======================================  ==========================================================
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import segments
from seqmodels.ops.pallas.layout import LANES

CHUNK = 128  # tokens: as many as lanes, so that B and C fill them
TILE = 16  # tokens, the rows of a register of bfloat16
WIDTHS = (512, 384, 256, 128)  # channels of a block, if one of them divides
BLOCK_STATES = 2**14  # elements of a block's state: a tile's backward step holds 32 of them
PART_STATES = 2**17  # elements of a part's state in VMEM


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of one call. The grid is (batch, parts, chunks, blocks of a part)."""

    B: int
    T: int
    D: int
    R: int  # rows of a channel's state
    C: int
    S: int  # states per sequence
    groups: int  # of channels that share B and C
    parts: int  # of the channels, a multiple of groups
    blocks: int  # per part
    masked: bool  # there are marks: documents, padding, or a ragged end

    @property
    def chunks(self) -> int:
        return -(-self.T // self.C)

    @property
    def width(self) -> int:
        return self.D // (self.parts * self.blocks)

    @property
    def grid(self) -> tuple[int, int, int, int]:
        return self.B, self.parts, self.chunks, self.blocks

    @property
    def chunk_states(self) -> tuple[int, ...]:
        """Shape of the states before every chunk."""
        return self.B, self.chunks, self.parts * self.blocks, self.R, self.width

    def vmem_bytes(self, columns: int) -> int:
        """Vector memory of a backward step with `columns` columns in and out, roughly."""
        width = -(-self.width // LANES) * LANES
        moved = 2 * (columns * self.C * width + 4 * self.R * self.C + 2 * (self.blocks + 2) * self.R * width)
        scratch = (2 * self.blocks + self.C // TILE + 2 * TILE + 4) * self.R * width
        return 4 * (moved + scratch)

    def pack_shared(self, rows: Array) -> Array:
        """``[B,T,G,N] -> [B,G,chunks,N,C]`` float32, zeros after the end."""
        x = jnp.pad(rows.astype(jnp.float32), ((0, 0), (0, self.chunks * self.C - self.T), (0, 0), (0, 0)))
        return x.reshape(self.B, self.chunks, self.C, self.groups, -1).transpose(0, 3, 1, 4, 2)

    def unpack_shared(self, packed: Array) -> Array:
        """``[B,parts,chunks,N,C] -> [B,T,G,N]``, summed over the parts of a group."""
        x = packed.reshape(self.B, self.groups, -1, *packed.shape[2:]).sum(axis=2)
        return x.transpose(0, 2, 4, 1, 3).reshape(self.B, self.chunks * self.C, self.groups, -1)[:, : self.T]

    def pack_state(self, state: Array) -> Array:
        """``[B,S,D,R] -> [B,S,parts,blocks,R,M]``."""
        x = state.reshape(self.B, self.S, self.parts, self.blocks, self.width, self.R)
        return jnp.swapaxes(x, -1, -2)

    def unpack_state(self, packed: Array) -> Array:
        """The inverse of `pack_state`."""
        return jnp.swapaxes(packed, -1, -2).reshape(self.B, self.S, self.D, self.R)

    def marks(self, segment_ids: Array | None, resets: Array | None = None) -> Array:
        """``[B,chunks,1,C]`` float32: 0 padding (after the end too), 1 a token, 3 one that starts anew.

        That is the first one of a later document or, where `resets` are given, one of them.
        """
        ids = jnp.ones((self.B, self.T), jnp.int32) if segment_ids is None else segment_ids
        starts = segments.starts(ids) if resets is None else resets & (ids != 0)
        marks = (ids != 0) + 2.0 * starts
        tail = self.chunks * self.C - self.T
        return jnp.pad(marks, ((0, 0), (0, tail))).reshape(self.B, self.chunks, 1, self.C).astype(jnp.float32)


def channel_blocks(D: int, groups: int, R: int, independent: bool) -> tuple[int, int]:
    """Parts, and blocks per part. `independent` channels share nothing: every block is a part of its own."""
    group = D // groups
    fitting = [width for width in WIDTHS if group % width == 0]
    width = next((w for w in fitting if w * R <= BLOCK_STATES), fitting[-1] if fitting else group)
    blocks = group // width
    if independent:
        return groups * blocks, 1
    split = next(n for n in range(1, blocks + 1) if blocks % n == 0 and (n == blocks or group * R <= PART_STATES * n))
    return groups * split, blocks // split
