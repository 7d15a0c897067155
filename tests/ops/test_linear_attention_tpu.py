"""TPU kernels of `linear_attention`: numbers by interpretation, compilation for every chip, memory, dispatch."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seqmodels import ops
from seqmodels.ops import dispatch
from tests.ops.tpu_kernels import (
    CHIPS,
    assert_memory,
    compile_for,
    devices,
    has_mosaic_call,
    interpreted,
    no_races,  # noqa: F401
    quick,
    runs_of_ids,
    with_gradients,
)
from tests.shared import golden, relative_error

kernel = functools.partial(ops.linear_attention, impl="pallas_tpu")
reference = functools.partial(ops.linear_attention, impl="reference")
NAMES = ("o", "final_state", "dq", "dk", "dv", "dg", "dinitial_state")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A small call: one batch of two sequences unless `rows` say otherwise."""

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

    def make(self):
        """``(args, cotangents, options)``; args are q, k, v, log_decay, state."""
        rng = np.random.default_rng(0)  # numpy: every eager jax operation is a compilation
        normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
        B, T, H, K, V = 2, self.T, self.H, self.K, self.V
        q, k, v, d_out = (normal(B, T, h, n) for h, n in ((self.Hk, K), (self.Hk, K), (H, V), (H, V)))
        state = normal(*((B, H, K, V) if self.segments is None else (B, self.segments, H, K, V)))
        shape = {"none": None, "fixed": (H,), "scalar": (B, T, H), "vector": (B, T, H, K)}[self.decay]
        g = None if shape is None else -np.exp(normal(*shape))
        if self.strong:
            kind = rng.integers(0, 6, shape)
            g = np.select([kind == 0, kind == 1, kind == 2], [-1e4, -30.0, -1e-4], g).astype(np.float32)
        cast = lambda x: x.astype(self.dtype)  # noqa: E731
        options = {"segment_ids": None if self.rows is None else runs_of_ids(self.rows), "num_segments": self.segments}
        return (cast(q), cast(k), cast(v), g, state), (cast(d_out), np.cos(state)), options


DOCUMENTS = (
    ((1, 9), (0, 2), (1, 3), (2, 13), (0, 3), (4, 5), (7, 1), (8, 3)),  # a length-1 one, padding at odd places
    ((0, 17), (3, 20), (0, 2)),  # starts with more than a chunk of padding
)
SEGMENTS = (
    ((3, 1), (1, 20), (0, 2), (3, 6), (1, 3), (3, 7)),  # interleaved; 2, 4 and 5 are empty
    ((0, 39),),  # no token at all
)
PROBLEMS = {
    "none": Problem("none", rows=DOCUMENTS),
    "fixed": Problem("fixed"),
    "scalar": Problem("scalar", rows=DOCUMENTS),
    "scalar_strong": Problem("scalar", strong=True),
    "scalar_segments": Problem("scalar", rows=SEGMENTS, segments=5),
    "scalar_whole_chunks": Problem("scalar", T=32),
    "scalar_one_token": Problem("scalar", T=1),
    "grouped_in_block": Problem("scalar", Hk=2, H=4, rows=DOCUMENTS),
    "grouped_over_grid": Problem("scalar", Hk=2, H=4, K=128, V=128, T=32),
    "grouped_segments": Problem("scalar", H=4, V=64, rows=SEGMENTS, segments=5),
    "vector": Problem("vector", rows=DOCUMENTS),
    "vector_strong": Problem("vector", strong=True, H=2),
    "vector_segments": Problem("vector", rows=SEGMENTS, segments=5),
    "vector_grouped": Problem("vector", Hk=1, H=2, K=128, V=128, T=32),
}


def bind(f, **options):
    """`f` of q, k, v, log_decay and state, with its options and gradients."""
    return with_gradients(lambda q, k, v, g, state: f(q, k, v, g, state=state, scale=0.3, **options))


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.usefixtures("no_races")
def test_matches_the_reference(problem):
    args, cotangents, options = problem.make()
    out, grads = interpreted(bind(kernel, chunk_size=16, **options), args, cotangents)
    expected, expected_grads = quick(bind(reference, **options), args, cotangents)
    for name, actual, wanted in zip(NAMES, (*out, *grads), (*expected, *expected_grads), strict=True):
        assert (actual is None) == (wanted is None), name
        if wanted is not None:
            assert actual.dtype == wanted.dtype
            assert relative_error(actual, wanted) <= 5e-6, name  # as the golden vectors
    if problem.segments:
        for row, ids in enumerate(runs_of_ids(problem.rows)):
            for slot in set(range(problem.segments)) - {int(i) - 1 for i in ids}:
                np.testing.assert_array_equal(out[1][row, slot], args[4][row, slot])


@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.usefixtures("no_races")
def test_bfloat16(decay):
    """Against the float32 reference of the same rounded inputs; the bound is the root mean square error's."""
    problem = Problem(decay, H=2, K=32, V=16, dtype="bfloat16", rows=DOCUMENTS)
    args, cotangents, options = problem.make()
    out, grads = interpreted(bind(kernel, chunk_size=16, **options), args, cotangents)
    wide = jax.tree.map(lambda x: x.astype(np.float32), (args, cotangents))
    expected, expected_grads = quick(bind(reference, **options), *wide)
    assert out[0].dtype == grads[0].dtype == jnp.bfloat16 and out[1].dtype == jnp.float32
    for name, actual, wanted in zip(NAMES, (*out, *grads), (*expected, *expected_grads), strict=True):
        error = np.sqrt(np.mean((np.asarray(actual, np.float32) - wanted) ** 2) / np.mean(np.square(wanted)))
        assert error <= 4e-3, f"{name}: {error}"


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["gla", "gla_strong_decay", "gla_packed", "simple_gla", "simple_gla_strong_decay", "retention_state"]
)
@pytest.mark.usefixtures("no_races")
def test_golden(name):
    arrays, attrs, tolerances = golden(f"ops/{name}")
    g = jnp.asarray(arrays["g"]) if "g" in arrays else jnp.log(jnp.asarray(attrs["gamma"], jnp.float32))
    args = (*(jnp.asarray(arrays[x]) for x in "qkv"), g, jnp.asarray(arrays["initial_state"]))
    packed = attrs.get("packed", False)
    ids, segments = (jnp.asarray(arrays["segment_ids"]) + 1, len(args[-1])) if packed else (None, None)

    def run(q, k, v, g, state):
        state = state[None] if packed else state
        out, state = kernel(
            q, k, v, g, state=state, scale=attrs["scale"], segment_ids=ids, num_segments=segments, chunk_size=64
        )
        return out, state[0] if packed else state

    cotangents = jnp.asarray(arrays["do"]), jnp.asarray(arrays["dht"])
    out, grads = interpreted(with_gradients(run), args, cotangents)
    for key, value in zip(NAMES, (*out, *grads), strict=True):
        if key in tolerances:
            assert relative_error(value, arrays[key]) <= tolerances[key], key


@pytest.mark.parametrize("decay", ["scalar", "vector"])
def test_padding_is_inert_even_if_it_is_not_a_number(decay):
    problem = Problem(decay, T=20, rows=(((1, 3), (0, 4), (1, 13)),) * 2)
    args, cotangents, options = problem.make()
    pad = options["segment_ids"] == 0
    spoil = lambda x: np.where(pad.reshape(pad.shape + (1,) * (x.ndim - 2)), np.float32(np.nan), x)  # noqa: E731
    spoiled = (*map(spoil, args[:4]), args[4])

    run = bind(kernel, chunk_size=16, **options)
    clean, dirty = interpreted(lambda *args: tuple(run(x, cotangents) for x in args), args, spoiled)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    for leaf in (dirty[0][0], *dirty[1][:4]):
        assert not np.asarray(leaf)[np.asarray(pad)].any()


def test_second_derivatives_are_those_of_the_chunked_form():
    args, _, _ = Problem("scalar", T=20).make()

    def penalty(impl, *args):
        loss = lambda q, g: jnp.sum(jnp.sin(ops.linear_attention(q, *args[1:3], g, state=args[4], impl=impl)[0]))  # noqa: E731
        gradients = jax.grad(loss, (0, 1))
        return jax.grad(lambda q, g: sum(jnp.sum(x**2) for x in gradients(q, g)), (0, 1))(args[0], args[3])

    actual = interpreted(functools.partial(penalty, "pallas_tpu"), *args)
    expected = quick(functools.partial(penalty, "chunked"), *args)
    for a, b in zip(actual, expected):
        assert relative_error(a, b) <= 1e-5


@dataclasses.dataclass(frozen=True)
class Size:
    """A size to compile; arrays come as projections make them, ``[B,T,H*K]``."""

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

    def shapes(self):
        Hk = self.Hk or self.H
        of = lambda *shape, dtype=self.dtype: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
        B, T, H, K, V = self.B, self.T, self.H, self.K, self.V
        state = of(*((B, H, K, V) if self.segments is None else (B, self.segments, H, K, V)), dtype="float32")
        args = {"q": of(B, T, Hk * K), "k": of(B, T, Hk * K), "v": of(B, T, H * V), "state": state}
        if self.decay != "none":
            args["g"] = of(B, T, H * (K if self.decay == "vector" else 1), dtype="float32")
        if self.segments or self.documents:
            args["ids"] = of(B, T, dtype="int32")
        return args, {"d_out": of(B, T, H * V), "d_state": state}

    def forward(self, q, k, v, state, g=None, ids=None):
        split = lambda x, heads: x.reshape(*x.shape[:2], heads, -1)  # noqa: E731
        q, k, v = split(q, self.Hk or self.H), split(k, self.Hk or self.H), split(v, self.H)
        g = split(g, self.H) if self.decay == "vector" else g
        out, state = kernel(q, k, v, g, state=state, segment_ids=ids, num_segments=self.segments)
        return out.reshape(*out.shape[:2], -1), state

    def backward(self, d_out, d_state, ids=None, **args):
        return jax.vjp(lambda args: self.forward(**args, ids=ids), args)[1]((d_out, d_state))

    def states(self):
        """Bytes of the states before every chunk."""
        chunk = 256 if max(self.K, self.V) > 128 and self.decay != "vector" else 128
        return self.B * -(-self.T // chunk) * self.H * self.K * self.V * 4


REAL = {f"B8_T4096_{decay}": Size(8, 4096, 16, 128, 128, decay) for decay in ("none", "scalar", "vector")}
LONG = {
    "T131072": Size(1, 131072, 16, 128, 128),
    "T131072_vector": Size(1, 131072, 16, 128, 128, "vector"),
    "K256": Size(2, 4096, 4, 256, 256),
    "K256_vector": Size(2, 4096, 4, 256, 256, "vector"),
}
SMALL = {
    "float32": Size(2, 256, 2, 128, 128, dtype="float32"),
    "float32_vector": Size(1, 256, 1, 128, 128, "vector", dtype="float32"),
    "two_heads_per_tile": Size(2, 256, 4, 64, 64),
    "ragged_odd_sizes": Size(2, 97, 3, 16, 24, documents=True),
    "one_token": Size(4, 1, 2, 128, 128),
    "shared_keys": Size(2, 256, 24, 128, 64, Hk=1, documents=True),
    "grouped_vector": Size(2, 256, 4, 128, 128, "vector", Hk=2, documents=True),
    "segments": Size(2, 250, 2, 128, 128, segments=5),
}


def compile_both(size, chip):
    args, cotangents = size.shapes()
    return (
        (size.forward, args, compile_for(chip, size.forward, args), 1.3),
        (size.backward, args | cotangents, compile_for(chip, size.backward, args | cotangents), 2.0),
    )


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("size", REAL.values(), ids=REAL)
def test_compiles_at_real_sizes_within_memory(size, chip):
    for f, args, compiled, ratio in compile_both(size, chip):
        assert_memory(compiled, f, args, size.states(), ratio)


@pytest.mark.parametrize(("name", "chip"), list(zip(LONG, ("v5e", "v5p", "v4", "v6e"))))
def test_compiles_long_and_wide_within_memory(name, chip):
    for f, args, compiled, ratio in compile_both(LONG[name], chip):
        assert_memory(compiled, f, args, LONG[name].states(), ratio)


@pytest.mark.parametrize(("name", "chip"), [(name, tuple(CHIPS)[i % 4]) for i, name in enumerate(SMALL)])
def test_compiles_odd_shapes(name, chip):
    compile_both(SMALL[name], chip)


def test_compiles_sharded_over_batch_and_heads():
    mesh = Mesh(np.array(devices("v5e")[:4]).reshape(2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    spec = P("data", None, "tensor")
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))  # noqa: E731

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def run(q, k, v):
        body = jax.checkpoint(lambda v, _: (kernel(q, k, v)[0], None))
        return jax.lax.scan(body, v, length=2)[0]

    gradient = jax.grad(lambda *args: jnp.sum(run(*args).astype(jnp.float32)), argnums=(0, 1, 2))
    text = jax.jit(gradient).lower(*[of(4, 256, 4, 128)] * 3).compile().as_text()
    assert "tpu_custom_call" in text


def test_auto_takes_the_kernel_on_a_tpu_only():
    args = Problem("scalar", T=32).make()[0]
    loss = jax.jit(jax.grad(lambda *args: jnp.sum(ops.linear_attention(*args[:4], state=args[4])[0]), argnums=(0, 3)))
    traced = loss.trace(*args)
    assert has_mosaic_call(traced.lower(lowering_platforms=("tpu",)))
    assert not has_mosaic_call(traced.lower(lowering_platforms=("cpu",)))
    expected = jax.grad(lambda *args: jnp.sum(reference(*args[:4], state=args[4])[0]), argnums=(0, 3))(*args)
    for a, b in zip(loss(*args), expected):
        assert relative_error(a, b) <= 5e-6


def test_refusals_say_why():
    q, k, v, g, state = Problem("scalar", T=4).make()[0]
    half = jnp.float16
    with pytest.raises(ValueError, match="q has dtype float16, a TPU kernel takes float32 and bfloat16"):
        kernel(q.astype(half), k.astype(half), v.astype(half), g, state=state)
    with pytest.raises(ValueError, match="chunk_size=24, a TPU kernel takes powers of two from 16"):
        kernel(q, k, v, g, chunk_size=24)
    wide = jnp.zeros((1, 4, 1, 2048))
    with pytest.raises(ValueError, match=r"K=2048, V=2048 and 16 tokens need about \d+ MiB of vector memory"):
        kernel(wide, wide, wide)
    with jax.enable_x64(True), pytest.raises(ValueError, match="64-bit mode"):
        kernel(q, k, v, g)
    assert dispatch.KERNELS["tpu"] in ops.linear_attention.__globals__["IMPLEMENTATIONS"]
