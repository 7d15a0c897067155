"""GPU kernels of `linear_attention` and `delta_rule`: numbers by interpretation, lowering for CUDA, dispatch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.ops import dispatch
from tests.ops import tpu_cases
from tests.ops.tpu_cases import DOCUMENTS, SEGMENTS, Problem, Size
from tests.ops.tpu_kernels import assert_matches_reference, has_mosaic_call, interpreted, rms_error

CALL = "__gpu$xla.gpu.triton"
BOTH = ("linear_attention", "delta_rule")

PROBLEMS = {
    "linear_none": Problem("linear_attention", "none", rows=DOCUMENTS),
    "linear_fixed_two_blocks": Problem("linear_attention", "fixed", T=32, H=2, V=72),
    "linear_scalar_strong": Problem("linear_attention", "scalar", strong=True),
    "linear_scalar_segments": Problem("linear_attention", "scalar", H=2, K=20, rows=SEGMENTS, segments=5),
    "linear_vector": Problem("linear_attention", "vector", rows=DOCUMENTS),
    "linear_vector_strong": Problem("linear_attention", "vector", Hk=1, H=2, strong=True),
    "linear_one_token": Problem("linear_attention", "scalar", T=1),
    "delta_none": Problem("delta_rule", "none", rows=DOCUMENTS),
    "delta_scalar": Problem("delta_rule", "scalar", Hk=1, H=2, V=72, rows=DOCUMENTS),
    "delta_vector_strong": Problem("delta_rule", "vector", strong=True),
    "delta_vector_segments": Problem("delta_rule", "vector", rows=SEGMENTS, segments=5),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_matches_the_reference(problem):
    assert_matches_reference(problem, "pallas_gpu")


@pytest.mark.parametrize(
    ("op", "decay", "bound"), [("linear_attention", "vector", 4e-3), ("delta_rule", "scalar", 6e-3)]
)
def test_bfloat16(op, decay, bound):
    """Root mean square error against the float32 reference of the same rounded inputs."""
    problem = Problem(op, decay, H=2, K=32, V=16, dtype="bfloat16", rows=DOCUMENTS)
    assert rms_error(problem, "pallas_gpu") <= {"linear_attention": 4e-3, "delta_rule": 6e-3}[op]


GOLDEN = {
    "gla_packed": "linear_attention",
    "simple_gla_strong_decay": "linear_attention",
    "retention_state": "linear_attention",
    "delta_rule_neg_eigval": "delta_rule",
    "gated_delta_rule_packed": "delta_rule",
    "kda_gva": "delta_rule",
}


@pytest.mark.shared
@pytest.mark.parametrize(("name", "op"), GOLDEN.items(), ids=GOLDEN)
def test_golden(name, op):
    tpu_cases.assert_golden(op, "pallas_gpu", name)


def test_padding_is_inert_even_if_it_is_not_a_number():
    problem = Problem("linear_attention", "scalar", T=20, rows=(((1, 3), (0, 4), (1, 13)),) * 2)
    args, cotangents, options = problem.make()
    pad = options["segment_ids"] == 0
    spoil = lambda x: np.where(pad.reshape(pad.shape + (1,) * (x.ndim - 2)), np.float32(np.nan), x)  # noqa: E731
    run = problem.run("pallas_gpu", chunk_size=16, **options)
    clean = interpreted(run, args, cotangents)
    dirty = interpreted(run, (*map(spoil, args[:4]), args[4]), cotangents)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def lowered(size, platform="cuda"):
    """The program of outputs and all gradients."""
    args, cotangents = size.shapes()
    return jax.jit(size.backward).trace(**args, **cotangents).lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("decay", ["none", "scalar", "vector"])
@pytest.mark.parametrize("op", BOTH)
def test_lowers_for_cuda_at_a_real_size(op, decay):
    """Four kernels: states, outputs, and their gradients."""
    text = lowered(Size(op, 8, 4096, 16, 128, 128, decay, impl="pallas_gpu")).as_text()
    assert text.count(CALL) == 4


@pytest.mark.parametrize(
    "size",
    [
        Size("linear_attention", 2, 97, 3, 24, 40, "scalar", dtype="float32", documents=True, impl="pallas_gpu"),
        Size("delta_rule", 2, 250, 4, 64, 96, "scalar", Hk=2, segments=5, impl="pallas_gpu"),
        Size("linear_attention", 1, 64, 1, 256, 256, "none", impl="pallas_gpu"),
    ],
    ids=["ragged_odd_sizes", "grouped_segments", "K256"],
)
def test_lowers_for_cuda_in_odd_shapes(size):
    assert lowered(size).as_text().count(CALL) == 4


def test_auto_follows_the_platform_of_the_lowering(monkeypatch):
    monkeypatch.setattr(dispatch, "compilers", lambda: ("tpu", "cuda"))
    size = Size("linear_attention", 1, 32, 1, 16, 16, impl="auto")
    assert lowered(size, "cuda").as_text().count(CALL) == 4
    assert CALL not in lowered(size, "cpu").as_text()
    assert has_mosaic_call(lowered(size, "tpu")) and CALL not in lowered(size, "tpu").as_text()


def test_refusals_say_why():
    kernel = functools.partial(ops.linear_attention, impl="pallas_gpu")
    wide, narrow = jnp.zeros((1, 4, 1, 512)), jnp.zeros((1, 4, 1, 8))
    with pytest.raises(ValueError, match="K=512, a GPU kernel holds 256 key channels at most"):
        kernel(wide, wide, narrow)
    with pytest.raises(ValueError, match="chunk_size=256, a GPU kernel takes 128 at most"):
        kernel(narrow, narrow, narrow, chunk_size=256)
    with pytest.raises(ValueError, match="q has dtype float16"):
        kernel(*[narrow.astype(jnp.float16)] * 3)
