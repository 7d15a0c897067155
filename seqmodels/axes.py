"""The axis letters used everywhere, and the array types built from them.

========  ==========================================================
letter    meaning
========  ==========================================================
B         batch
T         time (tokens)
H         value heads (Hk: query/key heads, H % Hk == 0)
K         key size, the rows of a state
V         value size, the columns of a state
D         model width, or channels of an elementwise op
N         state size of a state-space model; number of chunks inside ops
C         chunk length
W         convolution width
E         memories or experts
S         segments
========  ==========================================================

Public layout is ``[B,T,H,K]``; states are ``[B,H,K,V]`` float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
DType = jnp.dtype

DEFAULT_RULES = (  # logical axis name, then the mesh axes that split it (joined by commas; empty: never split)
    ("batch", "data,fsdp"),
    ("length", "sequence"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("expert", "expert"),
    ("layers", ""),
)


def split_axes(joined: str) -> tuple[str, ...]:
    """``"data,fsdp"`` -> ``("data", "fsdp")``."""
    return tuple(axis.strip() for axis in joined.split(",") if axis.strip())


def accumulate_dtype(*arrays: Array) -> jnp.dtype:
    """The dtype in which an op accumulates: at least float32, float64 when an input is float64."""
    return jnp.result_type(jnp.float32, *arrays)
