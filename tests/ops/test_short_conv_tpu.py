"""The TPU kernel of `short_conv`: numbers by interpretation, compilation, memory, dispatch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.ops import short_conv
from seqmodels.ops.pallas import channel_run
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from tests.ops.channel_cases import Conv, ConvSize
from tests.ops.tpu_cases import DOCUMENTS, SEGMENTS
from tests.ops.tpu_kernels import (
    assert_matches_reference,
    assert_memory,
    has_mosaic_call,
    interpreted,
    no_races,  # noqa: F401
    quick,
    rms_error,
)
from tests.shared import relative_error


@pytest.fixture
def chunks_of_16(monkeypatch):
    monkeypatch.setattr(channel_run, "CHUNK", 16)


PROBLEMS = {  # documents and segments shorter than the filter, of one token, and empty
    "documents": Conv(rows=DOCUMENTS),
    "segments_resets": Conv(rows=SEGMENTS, segments=5, resets=True, W=3, bias=False, activation=None),
    "whole_chunks_two_blocks": Conv(T=32, D=768, W=5),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.usefixtures("no_races", "chunks_of_16")
def test_matches_the_reference(problem):
    assert_matches_reference(problem)


@pytest.mark.usefixtures("no_races", "chunks_of_16")
def test_bfloat16():
    """Root mean square error against the float32 reference of the same rounded inputs."""
    assert rms_error(Conv(T=20, rows=(((1, 15), (2, 5)),) * 2, dtype="bfloat16")) <= 4e-3


@pytest.mark.usefixtures("chunks_of_16")
def test_padding_is_inert_even_if_it_is_not_a_number():
    problem = Conv(T=20, rows=(((1, 3), (0, 4), (1, 13)),) * 2)
    (x, *rest), (dy, d_state), options = problem.make()
    pad = (options["segment_ids"] == 0)[..., None]
    spoil = lambda x: np.where(pad, np.float32(np.nan), x)  # noqa: E731
    found = interpreted(problem.run("pallas_tpu", **options), (spoil(x), *rest), (spoil(dy), d_state))
    expected = quick(problem.run("reference", **options), (x, *rest), (dy, d_state))
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, wanted) <= 5e-6
    for leaf in (found[0][0], found[1][0]):
        assert not np.where(pad, leaf, 0).any()


@pytest.mark.slow
def test_second_derivatives_are_those_of_the_chunked_form():
    (x, weight, _, state), _, options = Conv(T=20, rows=(((1, 3), (0, 4), (1, 13)),) * 2).make()

    def penalty(impl, x, weight):
        run = lambda x, w: short_conv(x, w, state=state, activation="silu", impl=impl, **options)[0]  # noqa: E731
        first = jax.grad(lambda x, w: jnp.sum(jnp.sin(run(x, w))))
        return jax.grad(lambda x, w: jnp.sum(first(x, w) ** 2), argnums=(0, 1))(x, weight)

    actual = interpreted(functools.partial(penalty, "pallas_tpu"), x, weight)
    expected = quick(functools.partial(penalty, "chunked"), x, weight)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) <= 1e-5


SIZES = {
    "v4": (ConvSize(8, 4096, 2048), "v4"),
    "v5e_T131072": (ConvSize(1, 131072, 1536, bias=False), "v5e"),
    "v5p_documents": (ConvSize(8, 4096, 2048, documents=True), "v5p"),
    "v6e_float32": (ConvSize(8, 4096, 1024, dtype="float32"), "v6e"),
}
SMALL = {
    "ragged_odd_width": (ConvSize(2, 97, 24, W=7, documents=True, dtype="float32"), "v5e"),
    "segments_resets": (ConvSize(2, 250, 256, W=2, segments=5), "v4"),
}


@pytest.mark.parametrize(("size", "chip"), SIZES.values(), ids=SIZES)
def test_compiles_at_real_sizes_within_memory(size, chip):
    for f, args, compiled, ratio in size.compile(chip):
        assert_memory(compiled, f, args, size.states(), ratio)


@pytest.mark.slow
def test_moves_fewer_bytes_than_xla():
    """Why `auto` takes it: XLA's form accesses several times the inputs and outputs, the kernel's program one times.

    `cost_analysis` counts nothing for the kernel itself, which reads each input and writes each output once.
    """
    kernel, plain = ConvSize(8, 4096, 2048), ConvSize(8, 4096, 2048, impl="chunked")
    accessed = lambda compiled: compiled.cost_analysis()["bytes accessed"]  # noqa: E731
    for (f, args, ours, _), (_, _, theirs, _), least in zip(kernel.compile("v5e"), plain.compile("v5e"), (3, 9)):
        ideal = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((args, jax.eval_shape(f, **args))))
        assert accessed(ours) <= 0.01 * ideal and accessed(theirs) >= least * ideal


@pytest.mark.parametrize(("size", "chip"), SMALL.values(), ids=SMALL)
def test_compiles_odd_shapes(size, chip):
    assert len(list(size.compile(chip))) == 2


def test_auto_takes_the_kernel_on_a_tpu_only_and_not_for_a_few_tokens():
    def traced(T):
        x, weight = jax.ShapeDtypeStruct((1, T, 128), jnp.float32), jnp.ones((4, 128))
        return jax.jit(jax.grad(lambda x: jnp.sum(short_conv(x, weight)[0]))).trace(x)

    assert has_mosaic_call(traced(128).lower(lowering_platforms=("tpu",)))
    assert not has_mosaic_call(traced(128).lower(lowering_platforms=("cpu",)))
    assert not has_mosaic_call(traced(1).lower(lowering_platforms=("tpu",)))


def test_a_mesh_splits_batch_and_channels():
    problem = Conv(T=20, D=8, rows=(((1, 3), (0, 4), (1, 13)),) * 2)
    args, cotangents, options = problem.make()
    expected = quick(problem.run("chunked", **options), args, cotangents)
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4]))
    with partitioner.activate(), ops.interpret_kernels():
        found = quick(problem.run("pallas_tpu", **options), args, cotangents)
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, wanted) <= 5e-6


def test_refusals_say_why():
    x = jnp.ones((1, 4, 24))
    kernel = functools.partial(short_conv, impl="pallas_tpu")
    with pytest.raises(ValueError, match="x has dtype float16, a TPU kernel takes float32 and bfloat16"):
        kernel(x.astype(jnp.float16), jnp.ones((4, 24)))
    with pytest.raises(ValueError, match="width W=1 carries no state"):
        kernel(x, jnp.ones((1, 24)))
    with pytest.raises(ValueError, match="takes no empty axis"):
        kernel(x[:, :0], jnp.ones((4, 24)))
