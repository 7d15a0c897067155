"""How the arrays of a matrix recurrence lie in HBM for a TPU kernel: tiles of (8, 128) without padding or transposes.

=============  ==========================  ==============================================================
in the op      in the kernel               because
=============  ==========================  ==============================================================
q, k           ``[B,T,Hk*K]``              a block of whole heads is a block of columns
v, out         ``[B,T,H*V]``               likewise
vector decay   ``[B,T,H*K]``               likewise
scalar decay,  ``[B,H,N,R,C]``             ``[B,T,H]`` has no lanes to cut heads from, ``[...,T,1]`` is padded
write rate                                 128-fold; R such numbers per token
marks          ``[B,N,1,C]``               likewise
state          ``[B,S,P*R,V,G*K]``         decays per key channel scale lanes; heads of a block side by side
=============  ==========================  ==============================================================
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from seqmodels.axes import Array

LANES = 128


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of one call, and how heads are cut into blocks.

    A grid step holds `keys` key heads and `heads` value heads. The grid is (batch, blocks of key heads, chunks, blocks
    of value heads within the key heads' group): the last axis is longer than 1 only for grouped heads, which then share
    one load of their keys.
    """

    B: int
    T: int
    Hk: int
    H: int
    K: int
    V: int
    C: int
    S: int  # states per sequence
    keys: int
    heads: int
    masked: bool  # there are marks: documents, padding, or a ragged end

    @property
    def chunks(self) -> int:
        return -(-self.T // self.C)

    @property
    def groups(self) -> int:
        """Blocks of value heads that share a block of key heads."""
        return self.H * self.keys // (self.Hk * self.heads)

    @property
    def grid(self) -> tuple[int, int, int, int]:
        return self.B, self.Hk // self.keys, self.chunks, self.groups

    def width(self, kind: str) -> int:
        """Size of one head in an array of this kind."""
        return self.V if kind == "value" else self.K

    def count(self, kind: str) -> int:
        """Heads per block in an array of this kind."""
        return self.keys if kind == "key" else self.heads

    def vmem_bytes(self, gates: bool) -> int:
        """Vector memory of a backward step, roughly: double-buffered blocks, scratch, and the values of one head."""
        pad = lambda lanes: -(-lanes // LANES) * LANES  # noqa: E731
        columns = 4 * pad(self.keys * self.K) + 3 * pad(self.heads * self.V) + (2 * gates) * pad(self.heads * self.K)
        state = self.V * pad(self.heads * self.K)
        blocks = 2 * (columns * self.C + (2 * self.groups + 1) * state)
        head = (14 if gates else 8) * self.C * pad(max(self.K, self.V, self.C)) + 4 * self.V * pad(self.K)
        return 4 * (blocks + self.groups * state + head)

    def key_of(self, head: int) -> int:
        """The key head, within the block, of a value head within the block."""
        return head * self.keys // self.heads

    def merge(self, x: Array) -> Array:
        """``[B,T,H,K] -> [B,T,H*K]``."""
        return x.reshape(*x.shape[:2], -1)

    def pack_rows(self, *rows: Array) -> Array:
        """Numbers per token and head, each ``[B,T,H]``, as ``[B,H,N,R,C]`` float32; zeros after the end."""
        x = jnp.stack([row.astype(jnp.float32) for row in rows], axis=-1)  # [B,T,H,R]
        x = jnp.pad(x, ((0, 0), (0, self.chunks * self.C - self.T), (0, 0), (0, 0)))
        return x.reshape(self.B, self.chunks, self.C, self.H, -1).transpose(0, 3, 1, 4, 2)

    def unpack_rows(self, packed: Array) -> tuple[Array, ...]:
        """The inverse of `pack_rows`."""
        x = packed.transpose(3, 0, 2, 4, 1).reshape(-1, self.B, self.chunks * self.C, self.H)  # [R,B,T,H]
        return tuple(x[:, :, : self.T])

    def pack_state(self, state: Array) -> Array:
        """``[B,S,H,K,V] -> [B,S,H/G,V,G*K]`` with G heads per block."""
        x = state.reshape(self.B, self.S, self.H // self.heads, self.heads, self.K, self.V)
        return x.transpose(0, 1, 2, 5, 3, 4).reshape(self.B, self.S, self.H // self.heads, self.V, -1)

    def unpack_state(self, packed: Array) -> Array:
        """The inverse of `pack_state`."""
        x = packed.reshape(self.B, self.S, self.H // self.heads, self.V, self.heads, self.K)
        return x.transpose(0, 1, 2, 4, 5, 3).reshape(self.B, self.S, self.H, self.K, self.V)


def head_blocks(Hk: int, H: int, K: int, V: int, gates: bool) -> tuple[int, int]:
    """Key heads and value heads per block: the fewest whose columns fill whole tiles of 128 lanes.

    `gates` says that there are arrays of K columns per value head. All heads together always fit.
    """
    group = H // Hk
    fits = lambda count, width, all: count * width % LANES == 0 or count == all  # noqa: E731
    for keys in _divisors(Hk):
        if not fits(keys, K, Hk):
            continue
        for share in _divisors(group) if keys == 1 else [group]:
            heads = keys * share
            if fits(heads, V, H) and (not gates or fits(heads, K, H)):
                return keys, heads
    return Hk, H


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
