"""`rotary`: golden vectors, relative positions, layouts, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.ops import rotary
from tests.shared import golden, relative_error


@pytest.mark.shared
@pytest.mark.parametrize("name", ["half", "interleaved", "half_partial_offset"])
def test_golden(name):
    arrays, attrs, tol = golden(f"ops/rotary_{name}")
    options = {"base": attrs["base"], "dim": attrs["rotary_dim"], "interleaved": attrs["interleaved"]}
    run = jax.jit(lambda x: rotary(x, jnp.asarray(arrays["positions"]), **options))
    out, vjp = jax.vjp(run, jnp.asarray(arrays["x"]))
    assert relative_error(out, arrays["o"]) <= tol["o"]
    assert relative_error(vjp(jnp.asarray(arrays["do"]))[0], arrays["dx"]) <= tol["dx"]


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_the_difference_of_positions_only(interleaved):
    q, k = (jax.random.normal(key, (1, 1, 2, 8)) for key in jax.random.split(jax.random.key(0)))
    turn = functools.partial(rotary, dim=6, interleaved=interleaved)
    product = lambda i, j: jnp.sum(turn(q, jnp.array([i])) * turn(k, jnp.array([[j]])), axis=-1)  # noqa: E731
    np.testing.assert_allclose(product(12, 5), product(107, 100), rtol=0, atol=2e-5)
    assert jnp.abs(product(12, 5) - product(12, 6)).min() > 1e-3
    np.testing.assert_allclose(product(0, 0), jnp.sum(q * k, axis=-1), rtol=0, atol=1e-6)


def test_layouts_are_a_permutation_of_each_other():
    x = jax.random.normal(jax.random.key(1), (2, 5, 2, 8))
    at = jnp.array([[0, 1, 2, 3, 4], [7, 0, 1, 0, 9]])
    order = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # half layout -> interleaved
    want = rotary(x, at)[..., order]
    np.testing.assert_allclose(rotary(x[..., order], at, interleaved=True), want, rtol=0, atol=1e-6)


def test_dtypes_and_no_tokens():
    x = jnp.ones((2, 3, 1, 4), jnp.bfloat16)
    out = rotary(x, jnp.arange(3) + 1000)
    assert out.dtype == jnp.bfloat16
    want = rotary(x.astype(jnp.float32), jnp.arange(3) + 1000)  # angles are not rounded to bfloat16
    np.testing.assert_array_equal(out, want.astype(jnp.bfloat16))
    assert rotary(x[:, :0], jnp.arange(0)).shape == (2, 0, 1, 4)


@pytest.mark.parametrize(
    ("shape", "positions", "dim", "message"),
    [
        ((2, 3, 4), (3,), None, "x has shape"),
        ((2, 3, 1, 4), (2,), None, "positions has shape"),
        ((2, 3, 1, 4), (3,), 3, "dim=3"),
        ((2, 3, 1, 4), (3,), 6, "dim=6"),
    ],
)
def test_bad_input_is_refused(shape, positions, dim, message):
    with pytest.raises(ValueError, match=message):
        rotary(jnp.ones(shape), jnp.ones(positions, jnp.int32), dim=dim)


def test_a_base_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="base=0"):
        rotary(jnp.ones((2, 3, 1, 4)), jnp.arange(3), base=0.0)
