"""Blocks of tokens that take a kernel each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.layers.grouped_linear import GroupedLinear, GroupedLowRank, grouped_matmul
from seqmodels.sharding import unbox

G, R, N, C, D, E = 2, 3, 4, 2, 5, 3  # groups, rows, blocks, tokens of a block, features, kernels of a group
X = jax.random.normal(jax.random.key(0), (G, R, N, C, D))
MEMBER = jax.random.randint(jax.random.key(1), (G, R, N), 0, E)


def test_every_block_takes_its_kernel_with_gradients():
    kernel = jax.random.normal(jax.random.key(2), (G, E, D, 6))
    chosen = lambda kernel: kernel[jnp.arange(G)[:, None, None], MEMBER]  # noqa: E731
    plain = lambda x, kernel: jnp.einsum("grnci,grnio->grnco", x, chosen(kernel))  # noqa: E731
    y, vjp = jax.vjp(lambda *a: grouped_matmul(*a, MEMBER), X, kernel)
    expected, pull = jax.vjp(plain, X, kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(vjp(jnp.cos(y)), pull(jnp.cos(expected))):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module", [GroupedLinear(6, G * E, ("embed", "heads"), True), GroupedLowRank(6, 2, G * E, True)]
)
def test_kernels_differ_and_lie_along_the_expert_axis(module):
    boxed = module.init(jax.random.key(3), X, MEMBER)
    names = {leaf.names[0] for leaf in jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))}
    assert names == {"expert"}
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(G * E).reshape(-1, *[1] * (leaf.ndim - 1)), unbox(boxed))
    y = module.apply(params, X, MEMBER)
    for g, r, n in np.ndindex(G, R, N):
        own = jax.tree.map(lambda leaf: leaf[g * E + MEMBER[g, r, n]], params["params"])  # noqa: B023
        if "down" in own:
            expected = X[g, r, n] @ own["down"]["kernel"] + own["down"].get("bias", 0)
            expected = expected @ own["up"]["kernel"] + own["up"]["bias"]
        else:
            expected = X[g, r, n] @ own["kernel"] + own["bias"]
        np.testing.assert_allclose(y[g, r, n], expected, rtol=1e-4, atol=1e-5)
    kernels = jax.tree.leaves(unbox(boxed))[-1]
    assert not np.allclose(kernels[0], kernels[1]), "every kernel has its own initial values"
