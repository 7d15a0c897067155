"""MemMamba: its notes and readings written out in numpy, its special cases, and notes that go up the stack."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.mixers import MambaConfig, MemMambaConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sharding import unbox
from tests.shared import relative_error

D, T, d, P = 8, 13, 4, 3
X = jax.random.normal(jax.random.key(0), (2, T, D))
SMALL = MemMambaConfig(MambaConfig(state_size=2), pool_size=P, note_dim=d, cross_layer_every=1)
sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731


def noisy(params, seed=1):
    """Enough noise for every parameter to matter."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5 * rng.standard_normal(leaf.shape).astype("f"), params)


@functools.lru_cache
def parameters(cfg):
    return jax.tree.map(np.asarray, unbox(jax.jit(cfg.make(D).init)(jax.random.key(1), X))["params"])


@functools.partial(jax.jit, static_argnums=0)
def forward(cfg, params, x, state=None):
    return cfg.make(D).apply({"params": params}, x, state)


def by_hand(cfg, p, x, z):
    """One row: Mamba's outputs z, and what is read from the notes of the same layer. And where the notes come from."""
    hidden = x @ p["importance_up"]["kernel"]
    score = sigmoid(hidden * sigmoid(hidden) @ p["importance_down"]["kernel"])
    note = x @ p["note_proj"]["kernel"]
    note = score * note / np.sqrt(np.mean(note**2, axis=-1, keepdims=True) + 1e-6) * p["note_norm"]["scale"]
    before = np.pad(z, ((1, 0), (0, 0)))[:-1]
    forgetting = sigmoid(before @ p["state_scorer"]["kernel"] + p["state_scorer"]["bias"])
    r, y = p["cross_token"], z.copy()
    noted = np.flatnonzero(score[:, 0] > cfg.note_threshold)
    for t in range(len(x)):
        pool = note[noted[noted < t][-cfg.pool_size :]]
        if not len(pool) or forgetting[t] <= cfg.read_threshold:
            continue
        weights = np.exp(pool @ r["k_kernel"] @ (x[t] @ r["q_proj"]["kernel"]) / np.sqrt(d))
        c = weights / weights.sum() @ (pool @ r["v_kernel"])
        gate = sigmoid(np.concatenate([x[t], c]) @ r["gate_proj"]["kernel"])
        y[t] += forgetting[t] * gate * (c @ r["o_proj"]["kernel"])
    return y, noted


@pytest.mark.parametrize("threshold", [0.5, -1.0])
def test_the_layer(threshold):
    """With a threshold below 0 every token is noted, and the pool is a window of the last P compressed tokens."""
    cfg = dataclasses.replace(SMALL, note_threshold=threshold)
    params = noisy(parameters(cfg))
    y, state, aux = forward(cfg, params, X)
    z, _, _ = forward(cfg.inner, params["mamba"], X)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rows = [by_hand(cfg, double, np.asarray(x, np.float64), np.asarray(z_row, np.float64)) for x, z_row in zip(X, z)]
    assert relative_error(y, np.stack([row for row, _ in rows])) <= 1e-5
    assert relative_error(y, z) > 0.01, "nothing was read"
    for b, (_, noted) in enumerate(rows):
        assert len(noted) > P
        np.testing.assert_array_equal(state.pool.seat[b], noted[-P:] + 1)
    assert aux["stat/notes"] == pytest.approx(np.mean([len(noted) for _, noted in rows]) / T)
    assert 0 < aux["stat/reads"] <= 1


def test_without_notes_it_is_mamba():
    """An untrained layer, a pool without places, and a threshold that no token passes."""
    params = parameters(SMALL)
    plain, _, _ = forward(SMALL.inner, params["mamba"], X)
    np.testing.assert_array_equal(forward(SMALL, params, X)[0], plain)
    none = dataclasses.replace(SMALL, pool_size=0)
    assert set(parameters(none)) == {"mamba"}
    np.testing.assert_array_equal(forward(none, {"mamba": params["mamba"]}, X)[0], plain)
    closed, loud = dataclasses.replace(SMALL, note_threshold=1.0), noisy(params)
    y, state, aux = forward(closed, loud, X)
    np.testing.assert_array_equal(y, forward(SMALL.inner, loud["mamba"], X)[0])
    assert not np.any(state.pool.seat) and aux["stat/notes"] == 0


@pytest.fixture(scope="module", params=[1, 2, 9], ids=lambda p: f"every {p}")
def stack(request):
    """Three layers in one scan, with a gap of p layers between those that read others' notes."""
    cfg = dataclasses.replace(SMALL, cross_layer_every=request.param)
    model = LMConfig(dim=D, depth=3, pattern=(BlockConfig(cfg, mlp=None),), vocab_size=16).make()
    tokens = jax.random.randint(jax.random.key(2), (2, T), 0, 16)
    params = noisy(unbox(jax.jit(model.init)(jax.random.key(3), tokens)))
    return request.param, jax.jit(model.apply), params, tokens, model


def test_notes_go_up_the_stack(stack):
    """Whole and in two calls, without a look ahead; with p above the depth no layer reads another's notes."""
    p, run, params, tokens, model = stack
    whole, _, _ = run(params, tokens)
    first, state, _ = run(params, tokens[:, :6], model.init_state(2))
    second, _, _ = run(params, tokens[:, 6:], state)
    assert relative_error(jnp.concatenate([first, second], axis=1), whole) <= 1e-5
    changed, _, _ = run(params, tokens.at[:, 8].add(1))
    assert relative_error(changed[:, :8], whole[:, :8]) <= 1e-6
    silent = jax.tree.map(lambda leaf: leaf, params)
    reader = silent["params"]["backbone"]["stack"]["periods"]["block_0"]["mixer"]["cross_layer"]
    reader["o_proj"]["kernel"] = np.array(reader["o_proj"]["kernel"])
    reader["o_proj"]["kernel"][[layer for layer in range(3) if layer and layer % p == 0]] = 0
    without, _, _ = run(silent, tokens)
    assert (relative_error(without, whole) > 1e-3) == (p < 3)
    reader["o_proj"]["kernel"][:] = 0
    np.testing.assert_allclose(run(silent, tokens)[0], without, rtol=1e-6, atol=1e-6)


def test_the_state_does_not_grow():
    mixer = MemMambaConfig().make(64)
    assert mixer.state_bytes(100) == mixer.state_bytes(10_000)
    shapes = jax.eval_shape(lambda: mixer.init_state(1))
    assert [row.shape for row in shapes.pool.rows] == [(1, 50, 64)]


def test_a_negative_pool_is_refused():
    with pytest.raises(UserError, match="pool_size=-1 must not be negative"):
        MemMambaConfig(pool_size=-1)


@pytest.mark.parametrize("field", ["note_threshold", "read_threshold", "pool_size"])
def test_what_is_no_number_is_refused(field):
    with pytest.raises(UserError, match=rf"MemMambaConfig\.{field}=nan") as caught:
        MemMambaConfig(**{field: float("nan")})
    assert "\n" not in str(caught.value)


def test_layers_of_one_model_share_notes_of_one_kind():
    """Another p would let a layer read the notes of another one than it asks for."""
    other = dataclasses.replace(MemMambaConfig.tiny(), cross_layer_every=2)
    pattern = tuple(BlockConfig(cfg, None) for cfg in (MemMambaConfig.tiny(), other))
    model = LMConfig(dim=32, depth=2, pattern=pattern, vocab_size=8).make()
    with pytest.raises(UserError, match=r"shared 'memmamba_notes' is .* give both configs the same sizes"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
