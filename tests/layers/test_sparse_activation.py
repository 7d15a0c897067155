"""Sparse modular activation: packing, the decision, and equality with the dense form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.layers.mlp import MLPConfig
from seqmodels.layers.sparse_activation import Configurator, SparseActivation, pack
from seqmodels.mixers import HGRNConfig
from seqmodels.sharding import unbox

B, T, D = 3, 12, 16
X = jax.random.normal(jax.random.key(0), (B, T, D))
MASKS = {
    "none": np.zeros((B, T), bool),
    "all": np.ones((B, T), bool),
    "some": np.random.default_rng(0).random((B, T)) < 0.4,
}
mlp = MLPConfig(hidden=8).make(D)
MLP_PARAMS = unbox(jax.jit(mlp.init)(jax.random.key(1), X))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("places", [1, 4, T])
def test_extract_undoes_compress(name, places):
    active = MASKS[name]
    packing = pack(jnp.asarray(active), places)
    served = active & (np.cumsum(active, axis=1) <= places)
    np.testing.assert_array_equal(packing.served, served)
    np.testing.assert_array_equal(packing.count, served.sum(axis=1))
    rows = packing.compress(X)
    for b in range(B):
        own = np.asarray(X)[b][served[b]]
        np.testing.assert_array_equal(rows[b, : len(own)], own)
        assert not np.any(rows[b, len(own) :])
    np.testing.assert_array_equal(packing.extract(rows), np.where(served[..., None], X, 0))


configurator = Configurator(temperature_scale=0.3)
START = unbox(jax.jit(configurator.init)(jax.random.key(2), X))["params"]
START["router"]["kernel"] = jax.random.normal(jax.random.key(2), (D, 2))  # a router that has an opinion
decision = configurator.apply({"params": START}, X)


def apply(run, x=X, real=None, **options):
    """The wrapper with that router."""
    wrapper = SparseActivation(temperature_scale=0.3, **options)
    return jax.jit(lambda x: wrapper.apply({"params": {"configurator": START}}, x, run, real))(x)


def dense(y, active):
    return jnp.where(active[..., None], decision.confidence[..., None] * y, 0)


def test_a_token_wise_module_equals_the_dense_masked_form():
    run = lambda rows, packing: (mlp.apply(MLP_PARAMS, rows), None)  # noqa: E731
    real = jnp.ones((B, T), bool).at[:, 5].set(False)
    active = decision.active & real
    assert 0 < active.sum() < B * T
    most = int(active.sum(axis=1).max())
    everywhere = mlp.apply(MLP_PARAMS, X)
    expected = dense(everywhere, active)
    y, _, aux = apply(run, real=real)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert aux["stat/overflow"] == 0
    share = float(active.sum() / real.sum())
    assert aux["stat/activation"] == pytest.approx(share)
    assert aux["stat/activation_spread"] == pytest.approx(4 * share * (1 - share))
    enough, _, aux = apply(run, real=real, capacity=most / T)
    np.testing.assert_allclose(enough, expected, rtol=1e-5, atol=1e-6)
    assert aux["stat/overflow"] == pytest.approx(0, abs=1e-6)
    short, _, aux = apply(run, real=real, capacity=2 / T)
    kept = active & (jnp.cumsum(active, axis=1) <= 2)
    np.testing.assert_allclose(short, dense(everywhere, kept), rtol=1e-5, atol=1e-6)
    assert aux["stat/overflow"] == pytest.approx(1 - float(kept.sum() / active.sum()))


def test_a_sequence_mixer_equals_the_dense_form_with_inactive_tokens_as_padding():
    """A recurrence on packed tokens: for it they are the whole sequence."""
    mixer = HGRNConfig().make(D)
    weights = unbox(jax.jit(mixer.init)(jax.random.key(3), X))
    documents = jnp.ones((B, T), jnp.int32).at[:, 7:].set(2)

    def run(rows, packing):
        return mixer.apply(weights, rows, None, packing.compress(documents))[:2]

    y, state, _ = apply(run)
    expected, held, _ = jax.jit(mixer.apply)(weights, X, None, jnp.where(decision.active, documents, 0))
    np.testing.assert_allclose(y, dense(expected, decision.active), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.memory, held.memory, rtol=1e-4, atol=1e-6)


def test_the_router_learns_from_active_tokens_only():
    """The gradient of the logits is exactly 0 at inactive tokens, that of confidence elsewhere."""

    def loss(x):  # the module ignores its input's gradient, so that only the confidence is left
        return jnp.sum(apply(lambda rows, packing: (jax.lax.stop_gradient(rows), None), x)[0] ** 2)

    size = np.abs(jax.grad(loss)(X)).max(axis=-1)
    assert not np.any(size[~decision.active]) and np.all(size[decision.active] > 0)


def test_the_decision():
    logits = np.asarray(X @ START["router"]["kernel"], np.float64)
    tau = np.exp(float(START["log_temperature"]))
    assert tau == pytest.approx(0.3 * D**0.5)
    np.testing.assert_array_equal(decision.active, logits[..., 1] > logits[..., 0])
    confidence = 1 / (1 + np.exp(-np.abs(logits[..., 1] - logits[..., 0]) / tau))
    np.testing.assert_allclose(decision.confidence, confidence, rtol=1e-5)
    tied = jax.tree.map(jnp.zeros_like, START)
    assert not np.any(configurator.apply({"params": tied}, X).active)


@pytest.mark.parametrize("capacity", [0.0, 1.5])
def test_capacity_is_a_share(capacity):
    with pytest.raises(ValueError, match=f"capacity={capacity} is not in"):
        SparseActivation(capacity).init(jax.random.key(0), X, lambda rows, packing: (rows, None))
