"""TPU kernels of `linear_scan` and `selective_scan`: numbers by interpretation, compilation, memory, dispatch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.ops import linear_scan, selective_scan
from seqmodels.ops.pallas.channel_layout import channel_blocks
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from tests.ops.channel_cases import Scan, Selective, Size
from tests.ops.tpu_cases import DOCUMENTS, SEGMENTS
from tests.ops.tpu_kernels import (
    CHIPS,
    assert_matches_reference,
    assert_memory,
    has_mosaic_call,
    interpreted,
    no_races,  # noqa: F401
    quick,
    rms_error,
    with_gradients,
)
from tests.shared import golden, relative_error

PROBLEMS = {
    "real": Scan(rows=DOCUMENTS),
    "complex_segments": Scan(is_complex=True, rows=SEGMENTS, segments=5),
    "selective": Selective(rows=DOCUMENTS),
    "selective_segments": Selective(gated=False, rows=SEGMENTS, segments=5),
    "selective_strong_groups_blocks": Selective(T=20, D=768, G=2, N=2, strong=True),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.usefixtures("no_races")
def test_matches_the_reference(problem):
    assert_matches_reference(problem)


@pytest.mark.usefixtures("no_races")
def test_bfloat16():
    """Root mean square error against the float32 reference of the same rounded inputs."""
    assert rms_error(Selective(T=20, rows=(((1, 15), (2, 5)),) * 2, dtype="bfloat16")) <= 4e-3


@pytest.mark.shared
@pytest.mark.usefixtures("no_races")
def test_golden():
    arrays, _, tolerances = golden("ops/selective_scan")
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    time_first = lambda x: np.moveaxis(x, -1, 1) if x.ndim == 3 else x  # noqa: E731

    def run(*args):
        return selective_scan(*args[:7], delta_bias=args[7], softplus=True, impl="pallas_tpu")

    given = (time_first(arrays["do"]), arrays["dht"])
    (y, state), grads = interpreted(with_gradients(run), tuple(time_first(arrays[n]) for n in names), given)
    found = {"o": y, **{f"d{n}": x for n, x in zip(names, grads)}}
    assert relative_error(state, arrays["final_state"]) <= tolerances["final_state"]
    for key, value in found.items():
        assert relative_error(value, time_first(arrays[key])) <= tolerances[key], key


def test_padding_is_inert_even_if_it_is_not_a_number():
    problem = Selective(T=20, rows=(((1, 3), (0, 4), (1, 13)),) * 2)
    args, cotangents, options = problem.make()
    pad = options["segment_ids"] == 0
    spoil = lambda x: np.where(pad.reshape(pad.shape + (1,) * (x.ndim - 2)), np.float32(np.nan), x)  # noqa: E731
    timed = (0, 1, 3, 4, 6)  # x, dt, B, C, z
    run = problem.run("pallas_tpu", chunk_size=16, **options)
    clean = interpreted(run, args, cotangents)
    dirty = interpreted(run, tuple(spoil(x) if i in timed else x for i, x in enumerate(args)), cotangents)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    for leaf in (dirty[0][0], *(dirty[1][i] for i in timed)):
        assert not np.asarray(leaf)[pad].any()


@pytest.mark.slow
def test_second_derivatives_are_those_of_the_chunked_form():
    x, dt, A, B, C, _ = Selective(T=20, gated=False).make()[0]

    def penalty(impl, x, dt):
        first = jax.grad(lambda x, dt: jnp.sum(jnp.sin(selective_scan(x, dt, A, B, C, softplus=True, impl=impl)[0])))
        return jax.grad(lambda x, dt: jnp.sum(first(x, dt) ** 2), argnums=(0, 1))(x, dt)

    actual = interpreted(functools.partial(penalty, "pallas_tpu"), x, dt)
    expected = quick(functools.partial(penalty, "chunked"), x, dt)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) <= 1e-5


SELECTIVE, REAL = Size(8, 4096, 2048, 16), Size(8, 4096, 2048, dtype="float32")
SIZES = {
    "selective_v4": (SELECTIVE, "v4"),
    "selective_v5p": (SELECTIVE, "v5p"),
    "selective_v6e": (SELECTIVE, "v6e"),
    "selective_T131072": (Size(1, 131072, 1536, 16), "v5e"),
    "selective_N64": (Size(2, 4096, 2048, 64), "v5p"),
    "real_v4": (REAL, "v4"),
    "real_v6e": (REAL, "v6e"),
    "real_T131072": (Size(1, 131072, 2048), "v5e"),
    "complex_v5p": (Size(8, 4096, 1024, is_complex=True), "v5p"),
    "complex_T131072": (Size(1, 131072, 1024, is_complex=True), "v5e"),
}
SMALL = {
    "selective_ragged": Size(2, 97, 24, 5, documents=True, dtype="float32"),
    "selective_groups_segments": Size(2, 250, 256, 16, G=2, segments=5),
    "selective_N256": Size(1, 512, 1024, 256),
    "selective_one_token": Size(4, 1, 256, 16),
    "complex_ragged": Size(2, 97, 24, is_complex=True, documents=True),
    "real_segments": Size(2, 250, 128, segments=5),
}


@pytest.mark.parametrize(("size", "chip"), SIZES.values(), ids=SIZES)
def test_compiles_at_real_sizes_within_memory(size, chip):
    for f, args, compiled, ratio in size.compile(chip):
        assert_memory(compiled, f, args, size.states(), ratio)


@pytest.mark.parametrize(("name", "chip"), [(name, tuple(CHIPS)[i % 4]) for i, name in enumerate(SMALL)])
def test_compiles_odd_shapes(name, chip):
    assert len(list(SMALL[name].compile(chip))) == 2


def test_channels_are_cut_into_blocks_that_fill_tiles():
    assert channel_blocks(D=4096, groups=1, R=16, independent=False) == (1, 8)
    assert channel_blocks(D=4096, groups=2, R=16, independent=False) == (2, 4)
    assert channel_blocks(D=4096, groups=1, R=256, independent=False) == (8, 4), "parts bound the state in VMEM"
    assert channel_blocks(D=768, groups=1, R=1, independent=True) == (2, 1)
    assert channel_blocks(D=24, groups=1, R=16, independent=False) == (1, 1), "one block of all channels"


@pytest.mark.parametrize("op", ["linear_scan", "selective_scan"])
def test_auto_takes_the_kernel_on_a_tpu_only(op):
    x, rows, A = jnp.ones((1, 32, 8)), jnp.ones((1, 32, 4)), -jnp.ones((8, 4))
    run = linear_scan if op == "linear_scan" else (lambda x, dt: selective_scan(x, dt, A, rows, rows))
    traced = jax.jit(jax.grad(lambda *args: jnp.sum(run(*args)[0]), argnums=(0, 1))).trace(x, x)
    assert has_mosaic_call(traced.lower(lowering_platforms=("tpu",)))
    assert not has_mosaic_call(traced.lower(lowering_platforms=("cpu",)))


@pytest.mark.parametrize("problem", [Scan(T=20, D=8), Selective(T=20, D=8)], ids=["linear_scan", "selective_scan"])
def test_a_mesh_splits_batch_and_channels(problem):
    """Two devices along the batch, two along the channels; A, B and C are whole, their gradients summed."""
    args, cotangents, options = problem.make()
    expected = quick(problem.run("chunked", **options), args, cotangents)
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4]))
    with partitioner.activate(), ops.interpret_kernels():
        found = quick(problem.run("pallas_tpu", **options), args, cotangents)
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, wanted) <= 5e-6


def test_refusals_say_why():
    x, rows, A = jnp.ones((1, 4, 24)), jnp.ones((1, 4, 2, 3)), -jnp.ones((24, 3))
    kernel = functools.partial(selective_scan, impl="pallas_tpu")
    with pytest.raises(ValueError, match="x has dtype float16, a TPU kernel takes float32 and bfloat16"):
        kernel(x.astype(jnp.float16), x, A, rows, rows)
    with pytest.raises(ValueError, match="groups of 12 channels do not fill tiles of 128 lanes"):
        kernel(x, x, A, rows, rows)
    with pytest.raises(ValueError, match="chunk_size=24, a TPU kernel takes powers of two from 16"):
        kernel(x, x, A, rows[:, :, 0], rows[:, :, 0], chunk_size=24)
    wide = jnp.ones((1, 4, 20_001))
    with pytest.raises(ValueError, match=r"blocks of 20001 channels with 1 states and 16 tokens need about \d+ MiB"):
        linear_scan(wide, wide, impl="pallas_tpu")
    with jax.enable_x64(True), pytest.raises(ValueError, match="64-bit mode"):
        linear_scan(x, x, impl="pallas_tpu")
