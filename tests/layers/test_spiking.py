"""Leaky integrate-and-fire neurons."""

import jax
import jax.numpy as jnp
import numpy as np

from seqmodels.layers.spiking import integrate_and_fire, spike

run = jax.jit(integrate_and_fire, static_argnames=("tau", "threshold"))


def test_constant_inputs():
    """Below the threshold the potential tends to the input; twice the threshold fires at every step for τ = 2."""
    x = jnp.broadcast_to(jnp.array([0.9, 2.0, 0.0]), (1, 60, 3))
    fired, v = run(x, jnp.zeros((1, 3)))
    np.testing.assert_array_equal(fired[0].sum(axis=0), [0, 60, 0])
    np.testing.assert_allclose(v[0], [0.9, 0, 0], atol=1e-6)


def test_against_a_loop():
    rng = np.random.default_rng(0)
    x, start = rng.normal(0.5, 1.5, (1, 30, 4)).astype("f"), rng.random((1, 4)).astype("f")
    ids = np.repeat([1, 0, 2], 10)[None].astype(np.int32)
    v, expected = start[0].astype(np.float64), np.zeros((30, 4))
    for t in range(30):
        if ids[0, t] == 0:
            continue
        v = np.zeros(4) if t == 20 else v
        v = v + (x[0, t] - v) / 3.0
        expected[t] = v >= 0.5
        v = np.where(expected[t], 0, v)
    fired, last = run(x, start, ids, tau=3.0, threshold=0.5)
    np.testing.assert_array_equal(fired[0], expected)
    np.testing.assert_allclose(last[0], v, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_a_sigmoid_and_stops_at_the_reset():
    at = jnp.linspace(-1.0, 1.0, 5)
    slope = jax.vmap(jax.grad(spike))(at)
    soft = jax.nn.sigmoid(4 * at)
    np.testing.assert_allclose(slope, 4 * soft * (1 - soft), rtol=1e-6)
    x = jnp.full((1, 2, 1), 2.0)  # fires at once: the second spike cannot depend on the first input
    dx = jax.grad(lambda x: run(x, jnp.zeros((1, 1)))[0][0, 1, 0])(x)
    assert dx[0, 0, 0] == 0 and dx[0, 1, 0] > 0
