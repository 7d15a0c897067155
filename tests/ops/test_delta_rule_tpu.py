"""TPU kernels of `delta_rule`: numbers by interpretation, compilation for every chip, memory, dispatch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.ops import delta_rule
from seqmodels.ops.pallas.chip import GPU, TPU, triangular_inverse
from tests.ops import tpu_cases
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
)
from tests.shared import relative_error

Problem = functools.partial(tpu_cases.Problem, "delta_rule")
Size = functools.partial(tpu_cases.Size, "delta_rule")
kernel = functools.partial(delta_rule, impl="pallas_tpu")

PROBLEMS = {
    "none": Problem("none", rows=DOCUMENTS),
    "scalar": Problem("scalar", rows=DOCUMENTS),
    "scalar_strong": Problem("scalar", strong=True),
    "scalar_segments": Problem("scalar", rows=SEGMENTS, segments=5),
    "grouped_over_grid": Problem("scalar", Hk=1, H=2, K=128, V=128, T=32),
    "vector": Problem("vector", rows=DOCUMENTS),
    "vector_strong": Problem("vector", strong=True, H=2),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.usefixtures("no_races")
def test_matches_the_reference(problem):
    assert_matches_reference(problem)


@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.usefixtures("no_races")
def test_bfloat16(decay):
    """Root mean square error against the float32 reference of the same rounded inputs."""
    assert rms_error(Problem(decay, H=2, K=32, V=16, dtype="bfloat16", rows=DOCUMENTS)) <= 6e-3


GOLDEN = [
    "delta_rule_packed",
    "delta_rule_neg_eigval",
    "gated_delta_rule",
    "gated_delta_rule_strong_decay",
    "gated_delta_rule_packed",
    "kda_gva",
    "kda_strong_decay",
]


@pytest.mark.shared
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.usefixtures("no_races")
def test_golden(name):
    tpu_cases.assert_golden("delta_rule", "pallas_tpu", name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-4)])
@pytest.mark.parametrize("chip", [TPU, GPU], ids=["tpu", "gpu"])
def test_triangular_inverse(dtype, tolerance, chip):
    """Powers of this matrix overflow float32; its inverse has no entry above 2."""
    low = np.tril(np.full((128, 128), 2.0, np.float32), -1)
    exact = np.linalg.inv(np.eye(128) + low.astype(np.float64))
    assert relative_error(quick(lambda low: triangular_inverse(low, dtype, chip), low), exact) <= tolerance


def test_second_derivatives_are_those_of_the_chunked_form():
    args = Problem("scalar", T=20).make()[0]

    def penalty(impl, *args):
        def loss(beta, g):
            return jnp.sum(jnp.sin(delta_rule(*args[:3], beta, g, state=args[5], impl=impl)[0]))

        gradients = jax.grad(loss, (0, 1))
        return jax.grad(lambda *x: sum(jnp.sum(d**2) for d in gradients(*x)), (0, 1))(*args[3:5])

    actual = interpreted(functools.partial(penalty, "pallas_tpu"), *args)
    expected = quick(functools.partial(penalty, "chunked"), *args)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) <= 1e-5


REAL = {f"B8_T4096_{decay}": Size(8, 4096, 16, 128, 128, decay) for decay in ("scalar", "vector")}
LONG = {
    "T131072": (Size(1, 131072, 16, 128, 128), "v5e"),
    "K256": (Size(2, 4096, 4, 256, 256), "v4"),
    "K256_vector": (Size(2, 4096, 4, 256, 256, "vector"), "v6e"),
    "no_decay": (Size(8, 4096, 16, 128, 128, "none"), "v5p"),
}
SMALL = {
    "float32": Size(2, 256, 2, 128, 128, dtype="float32"),
    "two_heads_per_tile": Size(2, 256, 4, 64, 64),
    "ragged_odd_sizes": Size(2, 97, 3, 16, 24, documents=True),
    "one_token": Size(4, 1, 2, 128, 128),
    "grouped_values": Size(2, 256, 4, 128, 128, Hk=2, documents=True),
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


def test_auto_takes_the_kernel_on_a_tpu_only():
    args = Problem("scalar", T=32).make()[0]
    loss = lambda *args: jnp.sum(delta_rule(*args[:5], state=args[5])[0])  # noqa: E731
    traced = jax.jit(jax.grad(loss, argnums=(3, 4))).trace(*args)
    assert has_mosaic_call(traced.lower(lowering_platforms=("tpu",)))
    assert not has_mosaic_call(traced.lower(lowering_platforms=("cpu",)))


def test_refusals_say_why():
    with pytest.raises(ValueError, match="delta_rule: impl='pallas_tpu' refuses this call: chunk_size=24"):
        q, k, v, beta, g, _ = map(jnp.asarray, Problem("scalar", T=4).make()[0])
        kernel(q, k, v, beta, g, chunk_size=24)
