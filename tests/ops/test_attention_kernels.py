"""Kernels of `attention`, TPU and GPU: numbers by interpretation, compilation, memory, meshes, refusals."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax._src.cudnn.fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.ops import attention, dispatch
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from tests.ops.tpu_kernels import (
    assert_memory,
    compile_for,
    has_mosaic_call,
    interpreted,
    no_races,  # noqa: F401
    quick,
    with_gradients,
)
from tests.shared import golden, relative_error

ROWS = np.repeat([[1, 1, 0, 2, 2, 2, 0, 3, 0, 1], [0, 0, 0, 0, 5, 5, 5, 5, 5, 5]], 4, axis=1).astype(np.int32)
NOTHING = np.repeat(ROWS, [1, 0], axis=0) * np.array([[1], [0]], np.int32)  # a row without tokens


@dataclasses.dataclass(frozen=True)
class Problem:
    """A small call with two sequences, in numpy: every eager jax operation is a compilation."""

    T: int = 40  # three blocks of 16 tokens, the last one ragged
    S: int = 40
    H: int = 2
    Hk: int = 2
    K: int = 8
    V: int = 8
    causal: bool = True
    window: int | None = None
    sink: bool = False
    ids: np.ndarray | None = dataclasses.field(default=None, hash=False, compare=False)

    def make(self):
        """Arguments ``q, k, v, sink``, and the cotangent of the output."""
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
        q, k, v = (
            normal(2, self.T, self.H, self.K),
            normal(2, self.S, self.Hk, self.K),
            normal(2, self.S, self.Hk, self.V),
        )
        return (q, k, v, normal(self.H) if self.sink else None), normal(2, self.T, self.H, self.V)

    def run(self, impl, chunk_size=None):
        """The op of `args` and a cotangent, with gradients."""
        options = {"causal": self.causal, "window": self.window, "segment_ids": self.ids, "chunk_size": chunk_size}
        run = functools.partial(attention, impl=impl, **options)
        return with_gradients(lambda q, k, v, sink: run(q, k, v, sink=sink))


PROBLEMS = {
    "causal_grouped_ragged": Problem(H=2, Hk=1, V=12),
    "documents_sink": Problem(ids=ROWS, sink=True),
    "bidirectional_lengths_differ": Problem(T=32, S=48, causal=False),
    "bidirectional_window_documents": Problem(ids=ROWS, causal=False, window=5),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.usefixtures("no_races")
def test_matches_the_reference(problem):
    """Outputs and all gradients; padding holds NaN in the kernel's call, and gets zeros."""
    args, cotangent = problem.make()
    expected = quick(problem.run("reference"), args, cotangent)
    if problem.ids is not None:
        pad = problem.ids == 0
        args = (*(np.where(pad[:, :, None, None], np.float32(np.nan), x) for x in args[:3]), args[3])
    found = interpreted(problem.run("pallas_tpu", chunk_size=16), args, cotangent)
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, wanted) <= 5e-6
    if problem.ids is not None:
        out, (dq, dk, dv, _) = found
        assert not any(np.asarray(x)[pad].any() for x in (out, dq, dk, dv))


@pytest.mark.shared
@pytest.mark.usefixtures("no_races")
def test_golden():
    arrays, attrs, tolerances = golden("ops/attn_sliding_window")
    options = {key: attrs[key] for key in ("causal", "window", "scale")}
    run = with_gradients(functools.partial(attention, chunk_size=64, impl="pallas_tpu", **options))
    out, grads = interpreted(run, tuple(arrays[x] for x in "qkv"), arrays["do"])
    for key, value in zip(("o", "dq", "dk", "dv"), (out, *grads), strict=True):
        assert relative_error(value, arrays[key]) <= 5 * tolerances[key], key


def test_bfloat16_and_rows_that_see_nothing():
    """Root mean square error against float32 of the same rounded inputs; a row without tokens is 0 everywhere."""
    problem = Problem(ids=NOTHING)
    args, cotangent = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), problem.make())
    found = interpreted(problem.run("pallas_tpu", chunk_size=16), args, cotangent)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float32), (args, cotangent))
    expected = quick(problem.run("reference"), *wide)
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert value.dtype == jnp.bfloat16 and not np.asarray(value[1]).any()
        error = np.asarray(value, np.float32) - wanted
        assert np.sqrt(np.mean(error**2) / np.mean(np.square(wanted))) <= 5e-3


def test_second_derivatives_and_a_mesh():
    """Both are the chunked form's: two devices along the batch, two along the heads; Hessian-vector products on one."""
    problem = Problem(T=16, S=16, H=4, ids=ROWS[:, :16])
    args, cotangent = problem.make()
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4]))
    expected = quick(problem.run("chunked"), args, cotangent)
    with partitioner.activate(), ops.interpret_kernels():
        found = quick(problem.run("pallas_tpu"), args, cotangent)

    def twice(impl):
        gradients = lambda *args: problem.run(impl)(args, cotangent)[1]  # noqa: E731
        return jax.grad(lambda *args: sum(jnp.sum(x**2) for x in gradients(*args, None)[:3]), (0, 1, 2))

    wanted = quick(twice("chunked"), *args[:3])
    with ops.interpret_kernels():
        second = quick(twice("pallas_tpu"), *args[:3])
    for a, b in zip(jax.tree.leaves((found, second)), jax.tree.leaves((expected, wanted)), strict=True):
        assert relative_error(a, b) <= 1e-5


@dataclasses.dataclass(frozen=True)
class Size:
    """A call to compile; arrays come as projections make them, ``[B,T,H*K]``."""

    B: int
    T: int
    H: int
    Hk: int
    K: int
    dtype: str = "bfloat16"
    documents: bool = False
    sink: bool = False
    causal: bool = True
    window: int | None = None

    def shapes(self):
        of = lambda *shape, dtype=self.dtype: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))  # noqa: E731
        args = {name: of(self.B, self.T, n * self.K) for name, n in (("q", self.H), ("k", self.Hk), ("v", self.Hk))}
        args |= {"sink": of(self.H, dtype="float32")} if self.sink else {}
        args |= {"ids": of(self.B, self.T, dtype="int32")} if self.documents else {}
        return args, {"d_out": of(self.B, self.T, self.H * self.K)}

    def forward(self, q, k, v, sink=None, ids=None):
        q, k, v = (x.reshape(*x.shape[:2], n, -1) for x, n in ((q, self.H), (k, self.Hk), (v, self.Hk)))
        options = {"causal": self.causal, "window": self.window, "segment_ids": ids, "sink": sink}
        return attention(q, k, v, impl="pallas_tpu", **options).reshape(self.B, self.T, -1)

    def backward(self, d_out, ids=None, **args):
        return jax.vjp(lambda args: self.forward(**args, ids=ids), args)[1](d_out)[0]


SIZES = {
    "headline_v4": (Size(8, 4096, 16, 16, 128), "v4"),
    "grouped_T131072": (Size(1, 131072, 4, 2, 128), "v5e"),
    "window_K256": (Size(1, 8192, 2, 1, 256, window=1024), "v6e"),
}
SMALL = {
    "documents_sink_K24": (Size(2, 97, 4, 2, 24, "float32", documents=True, sink=True), "v5p"),
    "window_documents_K64": (Size(2, 100, 2, 2, 64, documents=True, window=30), "v4"),
}


@pytest.mark.parametrize(("size", "chip"), SIZES.values(), ids=SIZES)
def test_compiles_at_real_sizes_within_memory(size, chip):
    """Temporaries of a gradient: the output, and one number per query and head (times 8: a row fills a tile)."""
    args, cotangent = size.shapes()
    numbers = 4 * 8 * size.B * size.T * size.H
    out = size.B * size.T * size.H * size.K * 2
    assert_memory(compile_for(chip, size.forward, args), size.forward, args, numbers, 1.3)
    compiled = compile_for(chip, size.backward, args | cotangent)
    assert_memory(compiled, size.backward, args | cotangent, numbers + out, 2.0)


@pytest.mark.parametrize(("size", "chip"), SMALL.values(), ids=SMALL)
def test_compiles_odd_shapes(size, chip):
    args, cotangent = size.shapes()
    compile_for(chip, size.backward, args | cotangent)


def test_auto_takes_the_kernel_on_a_tpu_only():
    x = jax.ShapeDtypeStruct((1, 32, 2, 16), jnp.float32)
    traced = jax.jit(jax.grad(lambda *args: jnp.sum(attention(*args)), argnums=(0, 1, 2))).trace(x, x, x)
    assert has_mosaic_call(traced.lower(lowering_platforms=("tpu",)))
    assert not has_mosaic_call(traced.lower(lowering_platforms=("cpu",)))


def test_tpu_refusals_say_why():
    x, kernel = jnp.ones((1, 4, 2, 8)), functools.partial(attention, impl="pallas_tpu")
    half, at = x.astype(jnp.float16), jnp.arange(4)
    with pytest.raises(ValueError, match="q has dtype float16, a kernel takes float32 and bfloat16"):
        kernel(half, half, half)
    with pytest.raises(ValueError, match="positions are given, a kernel takes keys that stand in the order"):
        kernel(x, x, x, positions=at)
    with pytest.raises(ValueError, match="chunk_size=24, a kernel takes powers of two from 16"):
        kernel(x, x, x, chunk_size=24)
    with pytest.raises(ValueError, match=r"q has shape \(1, 0, 2, 8\), a kernel takes no empty axis"):
        kernel(x[:, :0], x[:, :0], x[:, :0])
    wide = jnp.ones((1, 4, 1, 40_000))
    with pytest.raises(ValueError, match=r"blocks of 1 heads with K=40000, V=40000 and 16 tokens need about \d+ MiB"):
        kernel(wide, wide, wide)
    long = jax.ShapeDtypeStruct((1, 2**19, 1, 8), jnp.float32)
    with pytest.raises(ValueError, match="32768 blocks of 16 tokens make too long a list of visible pairs"):
        jax.eval_shape(functools.partial(kernel, chunk_size=16, window=8), long, long, long)
    with jax.enable_x64(True), pytest.raises(ValueError, match="64-bit mode"):
        kernel(x, x, x)


@pytest.mark.parametrize("window", [None, 256])
def test_lowers_to_cudnn_for_cuda(window, monkeypatch):
    """Forward and backward, with a version of cuDNN assumed where there is none; on a mesh too."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(dispatch, "compilers", lambda: ("cuda",))
    q, k = (jax.ShapeDtypeStruct((4, 512, heads, 64), jnp.bfloat16) for heads in (8, 2))
    loss = lambda *args: jnp.sum(attention(*args, window=window).astype(jnp.float32))  # noqa: E731
    texts = []
    for mesh in (MeshConfig(), MeshConfig(data=2, tensor=2)):
        devices = jax.devices()[: 4 if mesh.data == 2 else 1]
        with Partitioner(make_mesh(mesh, devices)).activate():
            traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, k)
            texts.append(traced.lower(lowering_platforms=("cuda",)).as_text())
    for text in texts:
        assert "__cudnn$fmhaSoftmax(" in text or '__cudnn$fmhaSoftmax"' in text
        assert "__cudnn$fmhaSoftmaxBackward" in text


def test_gpu_refusals_say_why():
    x, kernel = jnp.ones((1, 4, 2, 8), jnp.bfloat16), functools.partial(attention, impl="pallas_gpu")
    refusals = {
        "q has dtype float32, cuDNN takes bfloat16": (x.astype(jnp.float32), {}),
        "segment_ids is given, which cuDNN knows nothing of": (x, {"segment_ids": jnp.ones((1, 4), jnp.int32)}),
        "sink is given": (x, {"sink": jnp.ones(2)}),
        "window=2 without causal": (x, {"window": 2, "causal": False}),
        "K=6 and V=6, cuDNN takes equal multiples of 8 up to 128": (x[..., :6], {}),
    }
    for reason, (x, options) in refusals.items():
        with pytest.raises(ValueError, match=reason):
            kernel(x, x.astype(x.dtype), x, **options)
