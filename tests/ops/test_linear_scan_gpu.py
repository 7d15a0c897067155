"""The GPU kernels of `linear_scan`: numbers by interpretation, lowering for CUDA, dispatch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.ops import dispatch, linear_scan
from tests.ops.channel_cases import Scan
from tests.ops.tpu_cases import DOCUMENTS, SEGMENTS
from tests.ops.tpu_kernels import assert_matches_reference, interpreted, quick
from tests.shared import relative_error

CALL = "__gpu$xla.gpu.triton"
PROBLEMS = {
    "documents": Scan(rows=DOCUMENTS),
    "segments": Scan(rows=SEGMENTS, segments=5),
    "complex_documents": Scan(is_complex=True, rows=DOCUMENTS),
    "complex_segments": Scan(is_complex=True, rows=SEGMENTS, segments=5),
    "whole_chunks_two_blocks": Scan(T=32, D=130),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_matches_the_reference(problem):
    assert_matches_reference(problem, "pallas_gpu")


def test_padding_is_inert_even_if_it_is_not_a_number():
    problem = Scan(T=20, rows=(((1, 3), (0, 4), (1, 13)),) * 2)
    (a, b, state), (dh, d_state), options = problem.make()
    pad = (options["segment_ids"] == 0)[..., None]
    spoil = lambda x: np.where(pad, np.float32(np.nan), x)  # noqa: E731
    run = problem.run("pallas_gpu", chunk_size=16, **options)
    found = interpreted(run, (spoil(a), spoil(b), state), (spoil(dh), d_state))
    expected = quick(problem.run("reference", **options), (a, b, state), (dh, d_state))
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, wanted) <= 5e-6


@pytest.mark.slow
def test_second_derivatives_are_those_of_the_chunked_form():
    (a, b, _), _, _ = Scan(T=20).make()

    def penalty(impl, a, b):
        first = jax.grad(lambda a, b: jnp.sum(jnp.sin(linear_scan(a, b, impl=impl)[0])))
        return jax.grad(lambda a, b: jnp.sum(first(a, b) ** 2), argnums=(0, 1))(a, b)

    actual = interpreted(functools.partial(penalty, "pallas_gpu"), a, b)
    expected = quick(functools.partial(penalty, "chunked"), a, b)
    for found, wanted in zip(actual, expected, strict=True):
        assert relative_error(found, wanted) <= 1e-5


def lowered(T, platform="cuda", impl="pallas_gpu", is_complex=False):
    """The program of outputs and all gradients: bfloat16 inputs with float32 factors, or complex ones."""
    wide = "complex64" if is_complex else "float32"
    of = lambda *shape, dtype=wide: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    low = of(8, T, 300, dtype="complex64" if is_complex else "bfloat16")

    def gradients(a, b, state, dh):
        return jax.vjp(lambda a, b, state: linear_scan(a, b, state=state, impl=impl)[0], a, b, state)[1](dh)

    traced = jax.jit(gradients).trace(of(8, T, 300), low, of(8, 300), low)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("T", "calls"), [(4096, 4), (97, 4), (40, 2)])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_lowers_for_cuda(T, calls, is_complex):
    """Chunks and outputs, forward and backward; a single chunk needs no reduction."""
    assert lowered(T, is_complex=is_complex).count(CALL) == calls


def test_auto_follows_the_platform_of_the_lowering(monkeypatch):
    monkeypatch.setattr(dispatch, "compilers", lambda: ("tpu", "cuda"))
    assert CALL in lowered(40, "cuda", "auto") and CALL not in lowered(40, "cpu", "auto")


def test_refusals_say_why():
    x = jnp.ones((1, 4, 3))
    kernel = functools.partial(linear_scan, impl="pallas_gpu")
    with pytest.raises(ValueError, match="a has dtype float16, a GPU kernel takes float32, bfloat16 and complex64"):
        kernel(x.astype(jnp.float16), x)
    with pytest.raises(ValueError, match="T=1, a GPU kernel has nothing to share out over time"):
        kernel(x[:, :1], x[:, :1])
