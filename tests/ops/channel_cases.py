"""Small problems and compile sizes for the TPU kernels of ops whose channels do not mix."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqmodels import ops
from tests.ops.tpu_cases import runs_of_ids
from tests.ops.tpu_kernels import compile_for, with_gradients


@dataclasses.dataclass(frozen=True)
class Scan:
    """A small call of `linear_scan`; arguments are a, b, state, complex ones as real arrays ``[...,2]``."""

    T: int = 39  # odd: three chunks of 16, the last one ragged
    D: int = 5
    is_complex: bool = False
    rows: tuple | None = None
    segments: int | None = None
    dtype: str = "float32"

    names = ("h", "final_state", "da", "db", "dinitial_state")

    def make(self):
        """``(args, cotangents, options)``, in numpy: every eager jax operation is a compilation."""
        rng = np.random.default_rng(0)
        parts = (2,) if self.is_complex else ()
        normal = lambda *shape: rng.standard_normal((*shape, *parts), np.float32)  # noqa: E731
        shape, lead = (2, self.T, self.D), (2,) if self.segments is None else (2, self.segments)
        a = rng.choice(np.array([0, 0.5, 0.99, 1, -0.7], np.float32), shape)
        if self.is_complex:
            angle = rng.uniform(0, 2 * np.pi, shape).astype(np.float32)
            a = np.stack([a * np.cos(angle), a * np.sin(angle)], axis=-1)
        b, dh, state = normal(*shape), normal(*shape), normal(*lead, self.D)
        cast = lambda x: x.astype(self.dtype)  # noqa: E731
        options = {"segment_ids": None if self.rows is None else runs_of_ids(self.rows), "num_segments": self.segments}
        return (a, cast(b), state), (cast(dh), np.cos(state)), options

    def run(self, impl, **options):
        """The op of `args` and `cotangents`, with gradients."""
        join = lambda x: jax.lax.complex(x[..., 0], x[..., 1])  # noqa: E731

        def op(a, b, state):
            if not self.is_complex:
                return ops.linear_scan(a, b, state=state, impl=impl, **options)
            results = ops.linear_scan(join(a), join(b), state=join(state), impl=impl, **options)
            return tuple(jnp.stack([x.real, x.imag], axis=-1) for x in results)

        return with_gradients(op)


@dataclasses.dataclass(frozen=True)
class Selective:
    """A small call of `selective_scan`; arguments are x, dt, A, B, C, if `gated` D, z and delta_bias, and state."""

    T: int = 39
    D: int = 5
    N: int = 3
    G: int = 1
    gated: bool = True
    strong: bool = False
    rows: tuple | None = None
    segments: int | None = None
    dtype: str = "float32"

    @property
    def names(self):
        gated = ["dD", "dz", "ddelta_bias"] if self.gated else []
        return ["y", "final_state", "dx", "ddt", "dA", "dB", "dC", *gated, "dinitial_state"]

    def make(self):
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
        T, D, N = self.T, self.D, self.N
        dt = rng.choice(np.array([-1e4, -30, 0, 1, 30], np.float32), (2, T, D)) if self.strong else normal(2, T, D)
        state = normal(2, *(() if self.segments is None else (self.segments,)), D, N)
        cast = lambda x: x.astype(self.dtype)  # noqa: E731
        args = (cast(normal(2, T, D)), cast(dt), -np.exp(normal(D, N)))
        args += (cast(normal(2, T, self.G, N)), cast(normal(2, T, self.G, N)))
        args += (normal(D), cast(normal(2, T, D)), normal(D)) if self.gated else ()
        options = {"segment_ids": None if self.rows is None else runs_of_ids(self.rows), "num_segments": self.segments}
        return (*args, state), (cast(normal(2, T, D)), np.cos(state)), options

    def run(self, impl, **options):
        def op(x, dt, A, B, C, *rest):
            D, z, bias, state = rest if self.gated else (None, None, None, *rest)
            given = {"delta_bias": bias, "softplus": True, "state": state, "impl": impl, **options}
            return ops.selective_scan(x, dt, A, B, C, D, z, **given)

        return with_gradients(op)


@dataclasses.dataclass(frozen=True)
class Size:
    """A call to compile, with N states per channel; N = 0 is `linear_scan`, `is_complex` with its two parts apart."""

    B: int
    T: int
    D: int
    N: int = 0
    G: int = 1
    is_complex: bool = False
    dtype: str = "bfloat16"
    segments: int | None = None
    documents: bool = False

    def shapes(self):
        """Shapes of the inputs, and of the cotangents."""
        of = lambda *shape, dtype="float32": jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
        low = of(self.B, self.T, self.D, dtype=self.dtype)
        lead = (self.B,) if self.segments is None else (self.B, self.segments)
        args: dict[str, Any] = {}
        if self.segments or self.documents:
            args["ids"] = of(self.B, self.T, dtype="int32")
        if self.N:
            rows = of(self.B, self.T, self.G * self.N, dtype=self.dtype)
            args |= {"x": low, "dt": low, "z": low, "Bm": rows, "Cm": rows}
            args |= {
                "A": of(self.D, self.N),
                "skip": of(self.D),
                "bias": of(self.D),
                "state": of(*lead, self.D, self.N),
            }
            return args, {"ct0": low, "ct1": args["state"]}
        wide, state = of(self.B, self.T, self.D), of(*lead, self.D)
        if self.is_complex:
            args |= dict.fromkeys(("a", "a_imag", "b", "b_imag"), wide) | dict.fromkeys(("state", "state_imag"), state)
            return args, {"ct0": wide, "ct1": wide, "ct2": state, "ct3": state}
        return args | {"a": wide, "b": low, "state": state}, {"ct0": low, "ct1": state}

    def forward(self, state, ids=None, **args):
        options = {"segment_ids": ids, "num_segments": self.segments, "impl": "pallas_tpu"}
        if self.N:
            rows = (args[n].reshape(self.B, self.T, self.G, self.N) for n in ("Bm", "Cm"))
            options |= {"delta_bias": args["bias"], "softplus": True, "state": state}
            return ops.selective_scan(args["x"], args["dt"], args["A"], *rows, args["skip"], args["z"], **options)
        if not self.is_complex:
            return ops.linear_scan(args["a"], args["b"], state=state, **options)
        args["state"] = state
        a, b, s = (jax.lax.complex(args[n], args[f"{n}_imag"]) for n in ("a", "b", "state"))
        h, after = ops.linear_scan(a, b, state=s, **options)
        return h.real, h.imag, after.real, after.imag

    def backward(self, ids=None, **given):
        cotangents = tuple(given.pop(name) for name in sorted(given) if name.startswith("ct"))
        return jax.vjp(lambda args: self.forward(**args, ids=ids), given)[1](cotangents)

    def states(self):
        """Bytes of the states before every chunk."""
        return self.B * -(-self.T // 128) * self.D * (self.N or 1 + self.is_complex) * 4

    def compile(self, chip):
        """Forward and backward: ``(function, its shapes, compiled, bound on HBM bytes over the ideal)``."""
        args, cotangents = self.shapes()
        yield self.forward, args, compile_for(chip, self.forward, args), 1.3
        given = args | cotangents
        yield self.backward, given, compile_for(chip, self.backward, given), 2.0


@dataclasses.dataclass(frozen=True)
class Conv:
    """A small call of `short_conv`; arguments are x, weight, if `bias` a bias, and state."""

    T: int = 39
    D: int = 5
    W: int = 4
    bias: bool = True
    activation: str | None = "silu"
    rows: tuple | None = None
    segments: int | None = None
    resets: bool = False
    dtype: str = "float32"

    @property
    def names(self):
        return ["y", "final_state", "dx", "dweight", *(["dbias"] if self.bias else []), "dinitial_state"]

    def make(self):
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
        cast = lambda x: x.astype(self.dtype)  # noqa: E731
        state = normal(2, *(() if self.segments is None else (self.segments,)), self.W - 1, self.D)
        args = (cast(normal(2, self.T, self.D)), normal(self.W, self.D), *((normal(self.D),) if self.bias else ()))
        options: dict[str, Any] = {"num_segments": self.segments}
        options["segment_ids"] = None if self.rows is None else runs_of_ids(self.rows)
        options["resets"] = rng.random((2, self.T)) < 0.3 if self.resets else None
        return (*args, state), (cast(normal(2, self.T, self.D)), np.cos(state)), options

    def run(self, impl, chunk_size=None, **options):
        """The op has no `chunk_size`; tests set the kernel's own."""
        del chunk_size

        def op(x, weight, *rest):
            bias, state = rest if self.bias else (None, *rest)
            return ops.short_conv(x, weight, bias, activation=self.activation, state=state, impl=impl, **options)

        return with_gradients(op)


@dataclasses.dataclass(frozen=True)
class ConvSize:
    """A call of `short_conv` to compile."""

    B: int
    T: int
    D: int
    W: int = 4
    bias: bool = True
    dtype: str = "bfloat16"
    segments: int | None = None
    documents: bool = False
    impl: str = "pallas_tpu"

    def shapes(self):
        """Shapes of the inputs, and of the cotangents."""
        of = lambda *shape, dtype="float32": jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
        x = of(self.B, self.T, self.D, dtype=self.dtype)
        lead = (self.B,) if self.segments is None else (self.B, self.segments)
        args = {"x": x, "weight": of(self.W, self.D), "state": of(*lead, self.W - 1, self.D)}
        args |= {"bias": of(self.D)} if self.bias else {}
        if self.segments or self.documents:
            args["ids"] = of(self.B, self.T, dtype="int32")
        if self.segments:
            args["resets"] = of(self.B, self.T, dtype="bool")
        return args, {"dy": x, "d_state": args["state"]}

    def forward(self, x, weight, state, bias=None, ids=None, resets=None):
        options = {"state": state, "segment_ids": ids, "num_segments": self.segments, "resets": resets}
        return ops.short_conv(x, weight, bias, activation="silu", impl=self.impl, **options)

    def backward(self, dy, d_state, ids=None, resets=None, **args):
        return jax.vjp(lambda args: self.forward(**args, ids=ids, resets=resets), args)[1]((dy, d_state))

    def states(self):
        """Bytes of the states before every chunk."""
        return self.B * -(-self.T // 128) * self.D * (self.W - 1) * 4

    def compile(self, chip):
        """Forward and backward: ``(function, its shapes, compiled, bound on HBM bytes over the ideal)``."""
        args, cotangents = self.shapes()
        for f, given, ratio in ((self.forward, args, 1.3), (self.backward, args | cotangents, 2.0)):
            yield f, given, compile_for(chip, f, given), ratio
