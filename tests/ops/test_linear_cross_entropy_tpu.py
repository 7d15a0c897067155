"""TPU kernel of `linear_cross_entropy`: numbers by interpretation, filter, compilation, memory, meshes, refusals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.ops import linear_cross_entropy
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from tests.ops.tpu_kernels import (
    compile_for,
    has_mosaic_call,
    interpreted,
    no_races,  # noqa: F401
    quick,
)
from tests.shared import relative_error

kernel = functools.partial(linear_cross_entropy, impl="pallas_tpu", chunk_size=128)
reference = functools.partial(linear_cross_entropy, impl="reference")


def make(N, D, vocab, dtype=np.float32):
    """Hidden states, embedding, bias and targets; the first token and some others are ignored."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    targets = np.where(rng.random(N) < 0.2, -100, rng.integers(0, vocab, N)).astype(np.int32)
    targets[0], targets[-1] = -100, vocab - 1
    return normal(N, D).astype(dtype), (normal(vocab, D) * D**-0.5).astype(dtype), normal(vocab), targets


def gradients(op, **options):
    """Loss, and gradients of hidden, embedding and bias."""
    return jax.value_and_grad(lambda h, e, b, targets: op(h, e, targets, bias=b, **options), argnums=(0, 1, 2))


@pytest.mark.usefixtures("no_races")
def test_matches_the_reference_with_all_options_in_ragged_tiles():
    args = make(37, 24, 301)
    options = {"softcap": 5.0, "z_loss": 0.01, "label_smoothing": 0.1}
    found = interpreted(gradients(kernel, **options), *args)
    expected = quick(gradients(reference, **options), *args)
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, wanted) <= 5e-6
    assert not np.asarray(found[1][0])[args[3] == -100].any()


@pytest.mark.usefixtures("no_races")
def test_the_filter_leaves_out_tiles_whose_derivatives_are_all_below_it():
    """Entries from 128 on are as good as never predicted: their rows get no gradient, the others keep theirs."""
    hidden, embedding, bias, _ = make(32, 16, 384)
    bias[128:] = -12.0
    targets = np.arange(32, dtype=np.int32)
    threshold = 2.0**-12
    exact, filtered = (
        interpreted(gradients(kernel, gradient_filter=f, reduction="sum"), hidden, embedding, bias, targets)[1]
        for f in (None, threshold)
    )
    expected = quick(gradients(reference, reduction="sum"), hidden, embedding, bias, targets)[1]
    for value, wanted in zip(exact, expected, strict=True):
        assert relative_error(value, wanted) <= 5e-6
    assert np.asarray(exact[1])[128:].any() and not np.asarray(filtered[1])[128:].any()
    np.testing.assert_array_equal(filtered[1][:128], exact[1][:128])
    assert np.abs(filtered[2] - exact[2]).max() <= 32 * threshold


def test_a_bias_of_minus_infinity_takes_a_whole_tile_out():
    hidden, embedding, bias, targets = make(16, 8, 300)
    bias[:130], targets = -np.inf, np.where(targets == -100, -100, 130 + targets % 170).astype(np.int32)
    found = interpreted(gradients(kernel, chunk_size=128), hidden, embedding, bias, targets)
    expected = quick(gradients(reference), hidden, embedding, bias, targets)
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(wanted).all() and relative_error(value, wanted) <= 5e-6


def test_a_state_that_is_not_finite_reaches_the_gradients():
    """One NaN reaches every row of the embedding, as it does in the reference: its tiles are not taken for empty."""
    hidden, embedding, bias, targets = make(16, 8, 50)
    hidden[3, 0], targets[3] = np.nan, 0
    call = gradients(kernel, reduction="sum")
    _, (d_hidden, d_embedding, d_bias) = interpreted(call, hidden, embedding, bias, targets)
    assert np.isnan(d_hidden[3]).all() and np.isnan(d_embedding).all() and np.isnan(d_bias).all()
    assert np.isfinite(np.delete(d_hidden, 3, axis=0)).all()


def test_bfloat16():
    """Root mean square error against float32 of the same rounded inputs."""
    args = make(40, 32, 256, jnp.bfloat16)
    found = interpreted(gradients(kernel), *args)[1]
    expected = quick(gradients(reference), *(np.asarray(x, np.float32) for x in args[:3]), args[3])[1]
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for value, wanted in zip(found, expected, strict=True):
        error = np.asarray(value, np.float32) - wanted
        assert np.sqrt(np.mean(error**2) / np.mean(np.square(wanted))) <= 5e-3


def test_a_mesh_splits_the_tokens_and_second_derivatives_are_those_of_the_chunked_form():
    hidden, embedding, bias, targets = make(32, 8, 128)
    expected = quick(gradients(reference), hidden, embedding, bias, targets)
    with Partitioner(make_mesh(MeshConfig(data=4), jax.devices()[:4])).activate(), ops.interpret_kernels():
        found = quick(gradients(kernel), hidden, embedding, bias, targets)

    def twice(op):
        return jax.grad(lambda h: sum(jnp.sum(x**2) for x in gradients(op)(h, embedding, bias, targets)[1]))

    wanted = quick(twice(reference), hidden)
    with ops.interpret_kernels():
        second = quick(twice(kernel), hidden)
    for a, b in zip(jax.tree.leaves((found, second)), jax.tree.leaves((expected, wanted)), strict=True):
        assert relative_error(a, b) <= 1e-5


def compiled(chip, N, D, vocab, dtype="bfloat16", bias=False, **options):
    of = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))  # noqa: E731
    args = {"hidden": of(N, D), "embedding": of(vocab, D), "targets": of(N, dtype="int32")}
    args |= {"bias": of(vocab, dtype="float32")} if bias else {}

    def run(targets, **inputs):
        loss = functools.partial(linear_cross_entropy, impl="pallas_tpu", targets=targets, **options)
        return jax.value_and_grad(lambda inputs: loss(**inputs))(inputs)

    return compile_for(chip, run, args)


def test_memory_is_that_of_inputs_and_gradients():
    """Loss and gradients of 8,192 tokens against 256,000 entries: temporaries under 1 % of the logits' bytes."""
    memory = compiled("v5e", 8192, 2304, 256_000).memory_analysis()
    assert memory.temp_size_in_bytes <= 0.01 * 4 * 8192 * 256_000
    ideal = 2 * 2 * 2304 * (8192 + 256_000)
    assert memory.argument_size_in_bytes + memory.output_size_in_bytes <= 1.01 * ideal


def test_compiles_odd_shapes():
    options = {"softcap": 5.0, "label_smoothing": 0.1, "z_loss": 1e-4, "gradient_filter": 2.0**-12}
    compiled("v6e", 100, 72, 50_257, "float32", bias=True, **options)
    compiled("v4", 256, 4096, 32_000)


def test_auto_takes_the_kernel_on_a_tpu_only_and_not_where_the_embedding_is_split():
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in make(32, 8, 128)]
    auto = jax.jit(gradients(linear_cross_entropy))
    assert has_mosaic_call(auto.trace(*args).lower(lowering_platforms=("tpu",)))
    assert not has_mosaic_call(auto.trace(*args).lower(lowering_platforms=("cpu",)))
    for axis, name in (("tensor", "vocab"), ("fsdp", "embed")):
        with Partitioner(make_mesh(MeshConfig(**{axis: 2}), jax.devices()[:2])).activate():
            reason = rf"{name} is split over mesh axes \('{axis}',\), and a kernel needs all of it"
            with pytest.raises(ValueError, match=reason):
                jax.eval_shape(gradients(kernel), *args)
            assert not has_mosaic_call(auto.trace(*args).lower(lowering_platforms=("tpu",)))


def test_a_bias_of_fewer_entries_than_a_tile_lowers():
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in make(32, 8, 50)]
    found = jax.jit(gradients(linear_cross_entropy)).trace(*args).lower(lowering_platforms=("tpu",))
    assert has_mosaic_call(found)


def test_refusals_say_why():
    hidden, embedding, _, targets = map(jnp.asarray, make(4, 8, 20))
    with pytest.raises(ValueError, match="hidden has dtype float16, a kernel takes float32 and bfloat16"):
        kernel(hidden.astype(jnp.float16), embedding, targets)
    with pytest.raises(ValueError, match="chunk_size=64, a kernel takes powers of two from 128"):
        kernel(hidden, embedding, targets, chunk_size=64)
    with pytest.raises(ValueError, match=r"hidden has shape \(0, 8\), a kernel takes no empty axis"):
        kernel(hidden[:0], embedding, targets[:0])
    with pytest.raises(ValueError, match=r"gradient_filter=2\.0 is out of range"):
        kernel(hidden, embedding, targets, gradient_filter=2.0)
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    call = lambda h, e: kernel(h, e, jnp.zeros(h.shape[0], jnp.int32))  # noqa: E731
    with pytest.raises(ValueError, match=r"tiles of 16 tokens and 128 entries with D=40000 need about \d+ MiB"):
        jax.eval_shape(call, of(4, 40_000), of(128, 40_000))
    with pytest.raises(ValueError, match="524288 tiles of logits, scalar memory holds a flag for 131072"):
        jax.eval_shape(call, of(2**17, 8), of(2**18, 8))
    with jax.enable_x64(True), pytest.raises(ValueError, match="64-bit mode"):
        kernel(hidden, embedding, targets)
