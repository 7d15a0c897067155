"""`scan_tokens`: documents, segments, padding, resuming and its gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.ops import scan_tokens
from tests.ops.sequences import run_alone


def step(state, x):
    """A step that is not linear, with a pytree of states of different ranks and two outputs."""
    total, count = state
    total = jnp.tanh(0.5 * total + x)
    return (total, count + 1), {"total": total, "count": count + 1}


def alone(inputs, total):
    out = []
    for x in inputs[0]:
        total = np.tanh(0.5 * total + x)
        out.append(total)
    return np.array(out), total


@functools.partial(jax.jit, static_argnames="num_segments")
def run(total, x, ids, num_segments=None):
    state = (total, jnp.zeros(total.shape[:-1], jnp.int32))
    return scan_tokens(step, state, x, segment_ids=ids, num_segments=num_segments)


@pytest.mark.parametrize("num_segments", [None, 3])
def test_every_document_and_segment_runs_alone(num_segments):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 20, 4)).astype(np.float32)
    ids = rng.integers(0, 4, (2, 20)).astype(np.int32)
    total = rng.standard_normal((2, *([num_segments] if num_segments else []), 4)).astype(np.float32)
    out, (last, count) = run(total, x, ids, num_segments)
    want, want_last = run_alone(alone, [x], total, ids, num_segments)
    np.testing.assert_allclose(out["total"], want, rtol=0, atol=1e-6)
    np.testing.assert_allclose(last, want_last, rtol=0, atol=1e-6)
    assert (out["count"][ids == 0] == 0).all() and (out["count"][ids != 0] > 0).all()
    if num_segments:
        np.testing.assert_array_equal(count, [[np.sum(row == s) for s in (1, 2, 3)] for row in ids])


def test_split_equals_whole_and_no_tokens_keep_the_state():
    x = jax.random.normal(jax.random.key(0), (2, 9, 4))
    ids = jnp.array([[1, 1, 0, 2, 2, 2, 0, 0, 2], [0, 1, 1, 1, 1, 1, 1, 0, 0]])
    total = jnp.ones((2, 4))
    whole, last = run(total, x, ids)
    first, (middle, count) = run(total, x[:, :4], ids[:, :4])
    second, after = scan_tokens(step, (middle, count), x[:, 4:], segment_ids=ids[:, 4:])
    np.testing.assert_allclose(jnp.concatenate([first["total"], second["total"]], 1), whole["total"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(after[0], last[0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(after[1], last[1])
    _, unchanged = run(total, x[:, :0], ids[:, :0])
    np.testing.assert_array_equal(unchanged[0], total)


def test_rubbish_at_padding_reaches_no_gradient():
    x = jnp.array([[[1.0], [jnp.inf], [2.0]]])
    ids = jnp.array([[1, 0, 1]])
    grads = jax.grad(lambda total, x: jnp.sum(run(total, x, ids)[0]["total"]), (0, 1))(jnp.ones((1, 1)), x)
    assert all(np.isfinite(g).all() for g in grads) and grads[1][0, 1, 0] == 0 and grads[1][0, 2, 0] != 0
