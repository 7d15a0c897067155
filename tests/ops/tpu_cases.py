"""Small problems, golden vectors and compile sizes for the kernels of ops with a ``[K,V]`` state."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from seqmodels import ops
from tests.ops.tpu_kernels import compile_for, interpreted, with_gradients
from tests.shared import golden, relative_error

DOCUMENTS = (
    ((1, 9), (0, 2), (1, 3), (2, 13), (0, 3), (4, 5), (7, 1), (8, 3)),  # a length-1 one, padding at odd places
    ((0, 17), (3, 20), (0, 2)),  # starts with more than a chunk of padding
)
SEGMENTS = (
    ((3, 1), (1, 20), (0, 2), (3, 6), (1, 3), (3, 7)),  # interleaved; 2, 4 and 5 are empty
    ((0, 39),),  # no token at all
)


def runs_of_ids(rows):
    """Segment ids ``[B,T]`` from run lengths: rows of ``((id, length), ...)``."""
    return np.asarray([[i for i, n in row for _ in range(n)] for row in rows], np.int32)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A small call with two sequences. Arguments are q, k, v, (beta,) log_decay, state."""

    op: str
    decay: str
    T: int = 39  # odd: three chunks of 16, the last one ragged
    Hk: int = 1
    H: int = 1
    K: int = 8
    V: int = 12
    rows: tuple | None = None
    segments: int | None = None
    strong: bool = False
    dtype: str = "float32"

    @property
    def names(self):
        beta = ["dbeta"] if self.op == "delta_rule" else []
        return ["o", "final_state", "dq", "dk", "dv", *beta, "dg", "dinitial_state"]

    def make(self):
        """``(args, cotangents, options)``, in numpy: every eager jax operation is a compilation."""
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
        B, T, H, K, V = 2, self.T, self.H, self.K, self.V
        q, k, v, d_out = (normal(B, T, h, n) for h, n in ((self.Hk, K), (self.Hk, K), (H, V), (H, V)))
        state = normal(*((B, H, K, V) if self.segments is None else (B, self.segments, H, K, V)))
        beta = ()
        if self.op == "delta_rule":
            k /= np.linalg.norm(k, axis=-1, keepdims=True)
            k[:, T // 7] = 0.0  # a key of norm 0
            beta = (rng.uniform(0, 2, (B, T, H)).astype(np.float32),)
        shape = {"none": None, "fixed": (H,), "scalar": (B, T, H), "vector": (B, T, H, K)}[self.decay]
        g = None if shape is None else -np.exp(normal(*shape))
        if self.strong:
            kind = rng.integers(0, 6, shape)
            g = np.select([kind == 0, kind == 1, kind == 2], [-1e4, -30.0, -1e-4], g).astype(np.float32)
        cast = lambda x: x.astype(self.dtype)  # noqa: E731
        options = {"segment_ids": None if self.rows is None else runs_of_ids(self.rows), "num_segments": self.segments}
        return (cast(q), cast(k), cast(v), *beta, g, state), (cast(d_out), np.cos(state)), options

    def run(self, impl, **options):
        """The op of `args` and `cotangents`, with gradients."""
        op = functools.partial(getattr(ops, self.op), impl=impl, scale=0.3, **options)
        return with_gradients(lambda *args: op(*args[:-1], state=args[-1]))


def assert_golden(op, impl, name):
    """Outputs and gradients of a golden vector, within its own tolerances."""
    arrays, attrs, tolerances = golden(f"ops/{name}")
    g = np.log(np.asarray(attrs["gamma"], np.float32)) if "gamma" in attrs and "g" not in arrays else arrays.get("g")
    beta = (arrays["beta"],) if op == "delta_rule" else ()
    args = (*(arrays[x] for x in "qkv"), *beta, g, arrays["initial_state"])
    packed = attrs.get("packed", False)
    ids, segments = (arrays["segment_ids"] + 1, len(args[-1])) if packed else (None, None)

    def run(*args):
        *args, state = args
        options = {"scale": attrs["scale"], "segment_ids": ids, "num_segments": segments, "chunk_size": 64}
        out, state = getattr(ops, op)(*args, state=state[None] if packed else state, impl=impl, **options)
        return out, state[0] if packed else state

    out, grads = interpreted(with_gradients(run), args, (arrays["do"], arrays["dht"]))
    for key, value in zip(Problem(op, "scalar").names, (*out, *grads), strict=True):
        if key in tolerances:
            assert relative_error(value, arrays[key]) <= tolerances[key], key


@dataclasses.dataclass(frozen=True)
class Size:
    """A call to compile; arrays come as projections make them, ``[B,T,H*K]``."""

    op: str
    B: int
    T: int
    H: int
    K: int
    V: int
    decay: str = "scalar"
    Hk: int = 0
    dtype: str = "bfloat16"
    segments: int | None = None
    documents: bool = False
    impl: str = "pallas_tpu"

    def shapes(self):
        """Shapes of the inputs, and of the cotangents."""
        Hk = self.Hk or self.H
        of = lambda *shape, dtype=self.dtype: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
        B, T, H, K, V = self.B, self.T, self.H, self.K, self.V
        state = of(*((B, H, K, V) if self.segments is None else (B, self.segments, H, K, V)), dtype="float32")
        args = {"q": of(B, T, Hk * K), "k": of(B, T, Hk * K), "v": of(B, T, H * V), "state": state}
        if self.op == "delta_rule":
            args["beta"] = of(B, T, H, dtype="float32")
        if self.decay != "none":
            args["g"] = of(B, T, H * (K if self.decay == "vector" else 1), dtype="float32")
        if self.segments or self.documents:
            args["ids"] = of(B, T, dtype="int32")
        return args, {"d_out": of(B, T, H * V), "d_state": state}

    def forward(self, q, k, v, state, beta=None, g=None, ids=None):
        split = lambda x, heads: x.reshape(*x.shape[:2], heads, -1)  # noqa: E731
        q, k, v = split(q, self.Hk or self.H), split(k, self.Hk or self.H), split(v, self.H)
        g = split(g, self.H) if self.decay == "vector" else g
        op = functools.partial(getattr(ops, self.op), impl=self.impl, num_segments=self.segments)
        out, state = op(q, k, v, *([] if beta is None else [beta]), g, state=state, segment_ids=ids)
        return out.reshape(*out.shape[:2], -1), state

    def backward(self, d_out, d_state, ids=None, **args):
        return jax.vjp(lambda args: self.forward(**args, ids=ids), args)[1]((d_out, d_state))

    def states(self):
        """Bytes of the states before every chunk."""
        chunk = 256 if max(self.K, self.V) > 128 and self.decay != "vector" else 128
        return self.B * -(-self.T // chunk) * self.H * self.K * self.V * 4

    def compile(self, chip):
        """Forward and backward: ``(function, its shapes, compiled, bound on HBM bytes over the ideal)``."""
        args, cotangents = self.shapes()
        for f, given, ratio in ((self.forward, args, 1.3), (self.backward, args | cotangents, 2.0)):
            yield f, given, compile_for(chip, f, given), ratio
