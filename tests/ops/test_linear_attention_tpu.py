"""TPU kernels of `linear_attention`: numbers by interpretation, compilation for every chip, memory, dispatch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seqmodels.ops import linear_attention
from tests.ops import tpu_cases
from tests.ops.tpu_cases import DOCUMENTS, SEGMENTS
from tests.ops.tpu_kernels import (
    CHIPS,
    assert_matches_reference,
    assert_memory,
    devices,
    has_mosaic_call,
    interpreted,
    no_races,  # noqa: F401
    quick,
    rms_error,
)
from tests.shared import relative_error

Problem = functools.partial(tpu_cases.Problem, "linear_attention")
Size = functools.partial(tpu_cases.Size, "linear_attention")
kernel = functools.partial(linear_attention, impl="pallas_tpu")

PROBLEMS = {
    "none": Problem("none", rows=DOCUMENTS),
    "fixed": Problem("fixed", T=32, H=2),
    "scalar": Problem("scalar", rows=DOCUMENTS),
    "scalar_strong": Problem("scalar", strong=True),
    "scalar_segments": Problem("scalar", rows=SEGMENTS, segments=5),
    "scalar_one_token": Problem("scalar", T=1),
    "grouped_in_block": Problem("scalar", Hk=2, H=4),
    "grouped_over_grid": Problem("scalar", Hk=2, H=4, K=128, V=128, T=32),
    "grouped_segments": Problem("scalar", H=4, V=64, rows=SEGMENTS, segments=5),
    "vector": Problem("vector", rows=DOCUMENTS),
    "vector_strong": Problem("vector", strong=True, H=2),
    "vector_segments": Problem("vector", rows=SEGMENTS, segments=5),
    "vector_grouped": Problem("vector", Hk=1, H=2, K=128, V=128, T=32),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.usefixtures("no_races")
def test_matches_the_reference(problem):
    assert_matches_reference(problem)


@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.usefixtures("no_races")
def test_bfloat16(decay):
    """Root mean square error against the float32 reference of the same rounded inputs."""
    assert rms_error(Problem(decay, H=2, K=32, V=16, dtype="bfloat16", rows=DOCUMENTS)) <= 4e-3


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["gla", "gla_strong_decay", "gla_packed", "simple_gla", "simple_gla_strong_decay", "retention_state"]
)
@pytest.mark.usefixtures("no_races")
def test_golden(name):
    tpu_cases.assert_golden("linear_attention", "pallas_tpu", name)


@pytest.mark.parametrize("decay", ["scalar", "vector"])
def test_padding_is_inert_even_if_it_is_not_a_number(decay):
    problem = Problem(decay, T=20, rows=(((1, 3), (0, 4), (1, 13)),) * 2)
    args, cotangents, options = problem.make()
    pad = options["segment_ids"] == 0
    spoil = lambda x: np.where(pad.reshape(pad.shape + (1,) * (x.ndim - 2)), np.float32(np.nan), x)  # noqa: E731
    run = problem.run("pallas_tpu", chunk_size=16, **options)
    clean = interpreted(run, args, cotangents)
    dirty = interpreted(run, (*map(spoil, args[:4]), args[4]), cotangents)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    for leaf in (dirty[0][0], *dirty[1][:4]):
        assert not np.asarray(leaf)[pad].any()


def test_second_derivatives_are_those_of_the_chunked_form():
    args = Problem("scalar", T=20).make()[0]

    def penalty(impl, q, k, v, g, state):
        loss = lambda q, g: jnp.sum(jnp.sin(linear_attention(q, k, v, g, state=state, impl=impl)[0]))  # noqa: E731
        gradients = jax.grad(loss, (0, 1))
        return jax.grad(lambda q, g: sum(jnp.sum(x**2) for x in gradients(q, g)), (0, 1))(q, g)

    actual = interpreted(functools.partial(penalty, "pallas_tpu"), *args)
    expected = quick(functools.partial(penalty, "chunked"), *args)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) <= 1e-5


REAL = {f"B8_T4096_{decay}": Size(8, 4096, 16, 128, 128, decay) for decay in ("scalar", "vector")}
LONG = {
    "T131072": (Size(1, 131072, 16, 128, 128), "v5e"),
    "T131072_vector": (Size(1, 131072, 16, 128, 128, "vector"), "v5p"),
    "K256": (Size(2, 4096, 4, 256, 256), "v4"),
    "K256_vector": (Size(2, 4096, 4, 256, 256, "vector"), "v6e"),
    "no_decay": (Size(8, 4096, 16, 128, 128, "none"), "v5e"),
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


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("size", REAL.values(), ids=REAL)
def test_compiles_at_real_sizes_within_memory(size, chip):
    for f, args, compiled, ratio in size.compile(chip):
        assert_memory(compiled, f, args, size.states(), ratio)


@pytest.mark.parametrize(("size", "chip"), LONG.values(), ids=LONG)
def test_compiles_long_and_wide_within_memory(size, chip):
    for f, args, compiled, ratio in size.compile(chip):
        assert_memory(compiled, f, args, size.states(), ratio)


@pytest.mark.parametrize(("name", "chip"), [(name, tuple(CHIPS)[i % 4]) for i, name in enumerate(SMALL)])
def test_compiles_odd_shapes(name, chip):
    assert len(list(SMALL[name].compile(chip))) == 2


def test_compiles_sharded_over_batch_and_heads_in_a_scan_with_remat():
    mesh = Mesh(np.array(devices("v5e")[:4]).reshape(2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    spec = P("data", None, "tensor")
    x = jax.ShapeDtypeStruct((4, 256, 4, 128), jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def run(q, k, v):
        body = jax.checkpoint(lambda v, _: (kernel(q, k, v)[0], None))
        return jax.lax.scan(body, v, length=2)[0]

    gradient = jax.grad(lambda *args: jnp.sum(run(*args).astype(jnp.float32)), argnums=(0, 1, 2))
    assert "tpu_custom_call" in jax.jit(gradient).lower(x, x, x).compile().as_text()


def test_auto_takes_the_kernel_on_a_tpu_only():
    args = Problem("scalar", T=32).make()[0]

    def loss(impl, q, k, v, g, state):
        return jnp.sum(linear_attention(q, k, v, g, state=state, impl=impl)[0])

    auto = jax.jit(jax.grad(functools.partial(loss, "auto"), argnums=(0, 3)))
    traced = auto.trace(*args)
    assert has_mosaic_call(traced.lower(lowering_platforms=("tpu",)))
    assert not has_mosaic_call(traced.lower(lowering_platforms=("cpu",)))
    expected = quick(jax.grad(functools.partial(loss, "chunked"), argnums=(0, 3)), *args)
    for a, b in zip(auto(*args), expected, strict=True):
        assert relative_error(a, b) <= 1e-6


def test_refusals_say_why():
    q, k, v, g, state = map(jnp.asarray, Problem("scalar", T=4).make()[0])
    half = jnp.float16
    with pytest.raises(ValueError, match="q has dtype float16, a kernel takes float32 and bfloat16"):
        kernel(q.astype(half), k.astype(half), v.astype(half), g, state=state)
    with pytest.raises(ValueError, match="chunk_size=24, a kernel takes powers of two from 16"):
        kernel(q, k, v, g, chunk_size=24)
    assert kernel(q[:0], k[:0], v[:0])[0].shape == v[:0].shape  # nothing to compute: no kernel is asked
    wide = jnp.zeros((1, 4, 1, 2048))
    with pytest.raises(ValueError, match=r"K=2048, V=2048 and 16 tokens need about \d+ MiB of vector memory"):
        kernel(wide, wide, wide)
    with jax.enable_x64(True), pytest.raises(ValueError, match="64-bit mode"):
        kernel(q, k, v, g)
