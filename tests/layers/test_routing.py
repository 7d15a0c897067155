"""The choice of a router, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.layers.routing import largest
from tests.shared import relative_error


@pytest.mark.parametrize("k", [1, 2, 5])
def test_largest_is_top_k(k):
    """Ties go to the lower index; infinities and numbers that repeat are taken once each."""
    rng = np.random.default_rng(k)
    logits = rng.integers(0, 4, (64, 3, 5)).astype(np.float32)
    logits[0, 0] = -np.inf
    logits[1, 0, :4] = [-np.inf, np.inf, np.inf, -np.inf]
    values, places = jax.jit(largest, static_argnums=1)(logits, k)
    expected, where = jax.lax.top_k(logits, k)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(places, where)
    assert places.dtype == jnp.int32


def test_the_gradient_goes_to_what_was_chosen():
    logits = jnp.asarray(np.random.default_rng(0).permutation(60).reshape(4, 3, 5), jnp.float32)
    weigh = lambda top: jnp.sum(jnp.sin(top[0]) * jnp.arange(1.0, 3.0))  # noqa: E731
    got = jax.grad(lambda x: weigh(largest(x, 2)))(logits)
    assert relative_error(got, jax.grad(lambda x: weigh(jax.lax.top_k(x, 2)))(logits)) <= 1e-6
    assert np.count_nonzero(got) == 4 * 3 * 2
