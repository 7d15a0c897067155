"""The memory of the LMU in chunks against its recurrence in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.layers.legendre_memory import legendre_memory
from seqmodels.ops import hippo
from tests.shared import relative_error

run = jax.jit(legendre_memory, static_argnames=("order", "window", "chunk_size"))


def recurrence(u, order, window, state=None):
    return hippo.memory(hippo.Measure("lmu", theta=window), order, np.asarray(u, np.float64), 1.0, initial_state=state)


@pytest.mark.parametrize(("order", "window", "length", "chunk"), [(6, 20.0, 75, 16), (256, 128.0, 128, None)])
def test_chunks_are_the_recurrence(order, window, length, chunk):
    rng = np.random.default_rng(0)
    u, state = rng.standard_normal((2, length)), rng.standard_normal((2, order))
    m, last = run(jnp.asarray(u, jnp.float32), order, window, state=jnp.asarray(state, jnp.float32), chunk_size=chunk)
    expected = np.stack([recurrence(row, order, window, start) for row, start in zip(u, state)])
    assert relative_error(m, expected) <= 1e-5
    np.testing.assert_array_equal(last, m[:, -1])


def test_a_constant_is_remembered_as_its_mean():
    m, _ = run(jnp.ones((1, 200)), 4, 8.0)
    np.testing.assert_allclose(m[0, -1], [1, 0, 0, 0], atol=1e-5)


def test_documents_and_padding():
    rng = np.random.default_rng(1)
    u, state = rng.standard_normal((1, 40)).astype("f"), rng.standard_normal((1, 5)).astype("f")
    ids = np.zeros((1, 40), np.int32)
    ids[0, [*range(2, 9), 11, 12]], ids[0, 14:30:2], ids[0, 30:37] = 1, 2, 7
    m, last = run(u, 5, 10.0, state=state, segment_ids=ids, chunk_size=8)
    for document in (1, 2, 7):
        at = ids[0] == document
        alone = recurrence(u[0, at], 5, 10.0, state[0] if document == 1 else None)
        assert relative_error(m[0, at], alone) <= 1e-5, document
    assert not np.any(m[0, ids[0] == 0])
    np.testing.assert_array_equal(last, m[:, 36])
    _, same = run(u, 5, 10.0, state=state, segment_ids=np.zeros_like(ids), chunk_size=8)
    np.testing.assert_array_equal(same, state)


def test_gradients_are_finite_and_match():
    loss = functools.partial(lambda u, size: jnp.sum(jnp.sin(legendre_memory(u, 4, 9.0, chunk_size=size)[0])))
    u = jnp.asarray(np.random.default_rng(2).standard_normal((1, 11)), jnp.float32)
    grad = jax.jit(jax.grad(loss), static_argnums=1)
    assert relative_error(grad(u, 4), grad(u, 16)) <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0, "window": 8.0}, "order=0 is not a positive int"),
        ({"order": 3, "window": 8.0, "state": jnp.zeros((1, 4))}, "state has shape"),
        ({"order": 3, "window": 8.0, "chunk_size": 6}, "chunk_size=6 is not a power of two"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        legendre_memory(jnp.zeros((1, 5)), **options)
