"""The cache of softmax attention, and its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.mixers import AttentionConfig, RotaryConfig
from seqmodels.sharding import unbox
from tests.shared import relative_error

DIM, B, T = 32, 2, 21
X = jax.random.normal(jax.random.key(0), (B, T, DIM))


def build(**options):
    mixer = AttentionConfig(num_heads=4, num_kv_heads=2, **options).make(DIM)
    shapes = unbox(jax.eval_shape(mixer.init, jax.random.key(1), X))
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return mixer, jax.tree.unflatten(structure, params), jax.jit(mixer.apply)


EVERYTHING = {
    "window": 6,
    "rotary": RotaryConfig(fraction=0.5, interleaved=True),
    "qkv_bias": True,
    "qk_norm": True,
    "output_gate": True,
    "sink": True,
}


def test_a_window_needs_a_cache_of_its_size_only():
    mixer, params, apply = build(**EVERYTHING)
    whole, _, _ = apply(params, X)
    state, steps = mixer.init_state(B), []
    assert state.k.shape == (B, 6, 2, 8)
    for t in range(T):
        y, state, _ = apply(params, X[:, t : t + 1], state)
        steps.append(y)
    assert relative_error(jnp.concatenate(steps, axis=1), whole) < 1e-5
    assert sorted(state.positions[0].tolist()) == list(range(T - 6, T))
    first, state, _ = apply(params, X[:, :14], mixer.init_state(B))
    second, _, _ = apply(params, X[:, 14:], state)
    assert relative_error(jnp.concatenate([first, second], axis=1), whole) < 1e-5


def test_every_option_matters():
    mixer, params, _ = build(**EVERYTHING)
    names = set(params["params"])
    assert names == {*(f"{n}_proj" for n in "qkvog"), "q_norm", "k_norm", "sinks"}
    assert all("bias" in params["params"][f"{n}_proj"] for n in "qkv")

    def loss(params):
        return jnp.sum(mixer.apply(params, X)[0] ** 2)

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


def test_without_positions_the_order_of_the_past_is_not_seen():
    _, params, apply = build(rotary=None)
    shuffled = X.at[:, : T - 1].set(X[:, jax.random.permutation(jax.random.key(3), T - 1)])
    assert relative_error(apply(params, shuffled)[0][:, -1], apply(params, X)[0][:, -1]) < 1e-5


def test_full_attention_holds_what_it_was_told():
    mixer, params, apply = build(max_length=16)
    assert mixer.init_state(B).k.shape[1] == 16
    assert mixer.init_state(B, 40).k.shape[1] == 40
    assert mixer.state_bytes(40) == 2 * 40 * 2 * 8 * 4 + 40 * 4 + 2 * 4
    _, state, _ = apply(params, X)
    assert state.k.shape[1] == T, "without a state the cache holds the call"
    with pytest.raises(ValueError, match=r"^Attention: the state holds 16 tokens, got a call of 21; raise max_length"):
        apply(params, X, mixer.init_state(B))


def test_full_attention_that_outgrows_its_cache_is_a_window_however_calls_are_cut():
    mixer, params, apply = build(max_length=6)
    whole, _, _ = build(window=6)[2](params, X)
    state, parts = mixer.init_state(B), []
    for begin, end in ((0, 6), (6, 12), (12, 13), (13, 19), (19, 20), (20, 21)):
        y, state, _ = apply(params, X[:, begin:end], state)
        parts.append(y)
    assert relative_error(jnp.concatenate(parts, axis=1), whole) < 1e-5


def test_odd_phases_are_refused():
    with pytest.raises(UserError, match="turns 3 of 8 channels"):
        AttentionConfig(num_heads=4, rotary=RotaryConfig(fraction=0.4)).make(DIM)
