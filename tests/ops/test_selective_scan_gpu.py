"""The GPU kernels of `selective_scan`: numbers by interpretation, lowering for CUDA, refusals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.ops import dispatch, selective_scan
from tests.ops.channel_cases import Selective
from tests.ops.tpu_cases import DOCUMENTS, SEGMENTS
from tests.ops.tpu_kernels import assert_matches_reference, interpreted, quick, rms_error
from tests.shared import relative_error

CALL = "__gpu$xla.gpu.triton"
PROBLEMS = {
    "documents": Selective(rows=DOCUMENTS),
    "segments": Selective(gated=False, rows=SEGMENTS, segments=5),
    "strong_groups_two_blocks": Selective(T=20, D=260, G=2, N=4, strong=True),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_matches_the_reference(problem):
    assert_matches_reference(problem, "pallas_gpu")


def test_bfloat16():
    """Root mean square error against the float32 reference of the same rounded inputs."""
    assert rms_error(Selective(T=20, rows=(((1, 15), (2, 5)),) * 2, dtype="bfloat16"), "pallas_gpu") <= 4e-3


def test_padding_is_inert_even_if_it_is_not_a_number():
    problem = Selective(T=20, rows=(((1, 3), (0, 4), (1, 13)),) * 2)
    (x, dt, A, B, C, D, z, bias, state), (dy, d_state), options = problem.make()
    pad = options["segment_ids"] == 0
    spoil = lambda value: np.where(pad.reshape(*pad.shape, *[1] * (value.ndim - 2)), np.float32(np.nan), value)  # noqa: E731
    args = (x, dt, A, B, C, D, z, bias, state)
    spoilt = (*map(spoil, (x, dt)), A, *map(spoil, (B, C)), D, spoil(z), bias, state)
    found = interpreted(problem.run("pallas_gpu", chunk_size=16, **options), spoilt, (spoil(dy), d_state))
    expected = quick(problem.run("reference", **options), args, (dy, d_state))
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, wanted) <= 5e-6


def lowered(T, platform="cuda", impl="pallas_gpu", D=300, N=16):
    """The program of outputs and all gradients, bfloat16 inputs."""
    of = lambda *shape, dtype="float32": jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    low, rows = of(8, T, D, dtype="bfloat16"), of(8, T, N, dtype="bfloat16")

    def gradients(dy, *args):
        return jax.vjp(lambda *args: selective_scan(*args, softplus=True, impl=impl)[0], *args)[1](dy)

    traced = jax.jit(gradients).trace(low, low, low, of(D, N), rows, rows, of(D), low)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("T", "D", "N"), [(4096, 2048, 16), (97, 300, 5), (131072, 768, 64)])
def test_lowers_for_cuda(T, D, N):
    """Chunks, the walk over them and outputs, forward; chunks, the walk and gradients, backward."""
    assert lowered(T, D=D, N=N).count(CALL) == 6


def test_auto_follows_the_platform_of_the_lowering(monkeypatch):
    monkeypatch.setattr(dispatch, "compilers", lambda: ("tpu", "cuda"))
    assert CALL in lowered(40, "cuda", "auto") and CALL not in lowered(40, "cpu", "auto")


def test_refusals_say_why():
    x, rows, A = jnp.ones((1, 4, 3)), jnp.ones((1, 4, 2)), -jnp.ones((3, 2))
    kernel = functools.partial(selective_scan, impl="pallas_gpu")
    with pytest.raises(ValueError, match="x has dtype float16, a GPU kernel takes float32 and bfloat16"):
        kernel(x.astype(jnp.float16), x, A, rows, rows)
    with pytest.raises(ValueError, match="T=1, a GPU kernel has nothing to share out over time"):
        kernel(x[:, :1], x[:, :1], A, rows[:, :1], rows[:, :1])
    with pytest.raises(ValueError, match="N=128, a GPU kernel holds 64 states of a channel at most"):
        kernel(x, x, -jnp.ones((3, 128)), jnp.ones((1, 4, 128)), jnp.ones((1, 4, 128)))
    with pytest.raises(ValueError, match="chunk_size=24, a GPU kernel takes powers of two from 4 to 128"):
        kernel(x, x, A, rows, rows, chunk_size=24)
