"""Laws of a mixture of memories beyond those of every mixer."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.layers import routing
from seqmodels.mixers import (
    AttentionConfig,
    GatedDeltaNetConfig,
    GLAConfig,
    LinearAttentionConfig,
    Mamba2Config,
    MixtureOfMemoriesConfig,
    parts,
)
from seqmodels.mixers.memory_order import order_by_memory
from seqmodels.models.stack import reduce_aux
from tests.mixers.memories import DIM, build, masked, of_memory, route
from tests.shared import relative_error

DELTA = GatedDeltaNetConfig(num_heads=2, head_dim=8, expand_v=1.0)
LINEAR = LinearAttentionConfig(num_heads=2)
INNER = {
    "gated delta net": DELTA,
    "convolutions without carried inputs": dataclasses.replace(DELTA, conv_size=1),
    "gla": GLAConfig(num_heads=2, gate_low_rank_dim=4),
    "linear attention": LINEAR,
    "mamba2": Mamba2Config(state_size=8, head_dim=16),
}
MOM = MixtureOfMemoriesConfig(DELTA, num_memories=4, top_k=2, balance_weight=0.1, z_loss_weight=0.01)
B, T = 2, 24
X = jax.random.normal(jax.random.key(0), (B, T, DIM))
IDS = jnp.array([[0, 0, *[3] * 9, *[1] * 5, 0, 1, 1, *[4] * 5], [*[7] * 6, *[2] * 6, *[0] * 4, 2, 2, *[5] * 6]])
EXACT = 2e-5


@functools.partial(jax.jit, static_argnums=0)
def jitted(mixer, params, x, state, ids):
    return mixer.apply({"params": params}, x, state, ids)


def run(mixer, params, x=X, ids=None, state=None):
    """``(y, state, aux)``; always with ids and a state, so that a mixer is compiled once."""
    ids = jnp.ones((B, T), jnp.int32) if ids is None else ids
    return jitted(mixer, params, x, mixer.init_state(B) if state is None else state, ids)


def only(start, stop):
    """Ids in which all other tokens are padding."""
    return jnp.zeros((B, T), jnp.int32).at[:, start:stop].set(1)


def assert_close(actual, expected, tolerance=EXACT):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) <= tolerance


@pytest.mark.parametrize("name", INNER)
def test_one_memory_is_the_inner_mixer(name):
    """Outputs and states, over documents and padding, from a carried state."""
    cfg = MixtureOfMemoriesConfig(INNER[name], num_memories=1, top_k=1, shared_memory=False)
    mixture, params = build(cfg)
    inner, own = INNER[name].make(DIM), of_memory(cfg, params, 0)
    state = expected_state = None
    for ids in (IDS, jnp.full((B, T), 5)):  # the second call continues row 1's last document only
        y, state, _ = run(mixture, params, X, ids, state)
        expected, expected_state, _ = run(inner, own, X, ids, expected_state)
        assert_close(y, expected)
        assert_close(jax.tree.map(lambda leaf: leaf[:, 0], state.memories), expected_state[1:])


def test_equal_memories_that_all_tokens_use_are_the_inner_mixer():
    cfg = MixtureOfMemoriesConfig(DELTA, num_memories=3, top_k=3, shared_memory=False)
    mixture, params = build(cfg)
    for stream in cfg.rule.streams(DIM).memory:
        own = params[f"{stream}_proj"]
        params[f"{stream}_proj"] = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), own)
    expected = run(DELTA.make(DIM), of_memory(cfg, params, 0), X, IDS)[0]
    assert_close(run(mixture, params, X, IDS)[0], expected)


VARIANTS = {
    "gated delta net": MOM,
    "mamba2, one projection": MixtureOfMemoriesConfig(INNER["mamba2"], 2, 1, single_kv_proj=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_reordered_is_masked_is_step_by_step(name):
    cfg = VARIANTS[name]
    mixture, params = build(cfg)
    y, final, _ = run(mixture, params, X, IDS)
    assert_close(y, jax.jit(lambda: masked(cfg, params, X, IDS))())
    step = lambda state, xs: mixture.apply({"params": params}, xs[0][:, None], state, xs[1][:, None])[1::-1]  # noqa: E731
    state, steps = jax.lax.scan(step, mixture.init_state(B), (X.swapaxes(0, 1), IDS.T))
    assert_close(steps[:, :, 0].swapaxes(0, 1), y)
    assert_close(state, final)


def test_memories_that_no_token_uses_stay_bit_for_bit():
    mixture, params = build(MOM)
    _, before, _ = run(mixture, params)
    for length in (1, 2):
        _, after, _ = run(mixture, params, X, only(5, 5 + length), before)
        choice = np.asarray(route(MOM, params, X[:, 5 : 5 + length]).choice)
        for row in range(B):
            used = set(choice[row].ravel().tolist())
            assert length > 1 or len(used) == 2
            for m in range(4):
                pairs = zip(jax.tree.leaves(after.memories), jax.tree.leaves(before.memories))
                same = [np.array_equal(a[row, m], b[row, m]) for a, b in pairs]
                assert not any(same) if m in used else all(same), f"row {row}, memory {m} of {used}"


def test_a_new_document_empties_even_the_memories_that_it_does_not_use():
    mixture, params = build(MOM)
    _, state, _ = run(mixture, params, X, jnp.full((B, T), 1).at[:, -1].set(2))
    _, alone, _ = run(mixture, params, X, only(T - 1, T))
    assert_close(state.memories, alone.memories)
    used = np.asarray(route(MOM, params, X[:, -1:]).choice)
    for row in range(B):
        empty = [m for m in range(4) if not np.any(state.memories[1][row, m])]
        assert empty == sorted({0, 1, 2, 3} - set(used[row, 0].tolist()))


def test_the_order_of_memories_does_not_matter():
    mixture, params = build(MOM)
    order = jnp.array([2, 0, 3, 1])
    moved = params | {"gate": {"kernel": params["gate"]["kernel"][:, order]}}
    for stream in MOM.rule.streams(DIM).memory:
        moved[f"{stream}_proj"] = {"kernel": params[f"{stream}_proj"]["kernel"][order]}
    y, state, _ = run(mixture, params)
    same, permuted, _ = run(mixture, moved)
    assert_close(same, y)
    assert_close(permuted.memories, jax.tree.map(lambda leaf: leaf[:, order], state.memories))


def leaks(rows):
    """Whether an output depends on a later token or on another row: by gradients, with convolutions."""
    cfg = dataclasses.replace(MOM, shared_memory=False)  # its blocks of 2 tokens leave hardly a gap between memories
    mixture, params = build(cfg)
    x = jax.random.normal(jax.random.key(5), (rows, T, DIM))
    grad = jax.jit(jax.grad(lambda x, t: jnp.sum(mixture.apply({"params": params}, x)[0][0, t])))
    size = np.stack([np.abs(np.asarray(grad(x, t))).max(axis=-1) for t in range(T)])  # [T,rows,T]
    assert np.diagonal(size[:, 0]).min() > 0 and np.tril(size[:, 0], -1)[6:].max(axis=1).min() > 0
    return bool(np.triu(size[:, 0], 1).any() or size[:, 1:].any())


@pytest.mark.parametrize("rows", [1, 3])
def test_no_output_depends_on_the_future_or_on_another_row(rows):
    assert not leaks(rows)


def test_a_convolution_over_the_borders_of_memories_would_be_found(monkeypatch):
    """The defect of the public training code."""

    def careless(convs, streams, state, segments):
        return [conv(x)[0] for conv, x in zip(convs, streams)], state

    monkeypatch.setattr(parts, "silu_conv", careless)
    assert leaks(1)


def test_one_memory_per_token_gives_the_router_no_gradient():
    """Only the balance loss does."""
    kernel = jax.random.normal(jax.random.key(0), (DIM, 4))

    def route(kernel):
        return routing.Router(4, 1).apply({"params": {"kernel": kernel}}, X)

    assert not np.any(jax.grad(lambda kernel: jnp.sum(jnp.sin(route(kernel).weight)))(kernel))
    real = jnp.ones((B, T), bool)
    assert np.any(jax.grad(lambda kernel: routing.balance_loss(routing.load(route(kernel), real)))(kernel))


def balance_by_definition(logits, k):
    """``M Σ_j Σ_m f_jm P_m`` of tokens ``logits [n,M]``."""
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    order = np.argsort(-logits, axis=-1)[:, :k]
    M = logits.shape[-1]
    fractions = [(order[:, j, None] == np.arange(M)).mean(axis=0) for j in range(k)]
    return M * sum(float(f @ p.mean(axis=0)) for f in fractions)


@pytest.mark.parametrize(("M", "k"), [(4, 2), (8, 3), (5, 5), (1, 1)])
def test_the_balance_loss_of_a_uniform_router_is_k(M, k):
    routed = routing.Router(M, k).apply({"params": {"kernel": jnp.zeros((DIM, M))}}, X)
    assert routing.balance_loss(routing.load(routed, IDS != 0)) == pytest.approx(k, rel=1e-6)


def test_losses_follow_their_definitions_and_ignore_padding():
    mixture, params = build(MOM)
    logits = np.asarray(X, np.float64)[IDS != 0] @ np.asarray(params["gate"]["kernel"], np.float64)
    expected = balance_by_definition(logits, 2)
    aux = run(mixture, params, jnp.where((IDS != 0)[..., None], X, 1e3), IDS)[2]
    assert expected > 2.02, "a skewed router"
    assert aux["stat/balance"] == pytest.approx(expected, rel=1e-5)
    assert aux["loss/balance"] == pytest.approx(0.1 * expected, rel=1e-5)
    z = np.mean(np.log(np.exp(logits).sum(axis=-1)) ** 2)
    assert aux["loss/router_z"] == pytest.approx(0.01 * z, rel=1e-5)
    assert aux["stat/load_min"] < 1 < aux["stat/load_max"]


def test_pooled_balance_is_that_of_all_layers_tokens_together():
    mixture, _ = build(dataclasses.replace(MOM, balance="pooled", z_loss_weight=0.0))
    only_aux = jax.jit(lambda params: mixture.apply({"params": params}, X)[2])
    layers, logits = [], []
    for seed in (1, 2, 3):
        _, params = build(MOM, seed)
        layers.append(only_aux(params))
        logits.append(np.asarray(X.reshape(-1, DIM) @ params["gate"]["kernel"]))
    scanned = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers[:2])
    reduced = reduce_aux([scanned, layers[2]])
    assert reduced["loss/balance"] == pytest.approx(0.1 * balance_by_definition(np.concatenate(logits), 2), rel=1e-5)
    alone = sum(0.1 * balance_by_definition(layer, 2) for layer in logits)
    assert abs(reduced["loss/balance"] * 3 - alone) > 1e-3, "the two losses differ"
    assert all(np.ndim(value) == 0 for value in reduced.values())


def test_capacity_keeps_the_first_tokens_of_a_memory():
    cfg = MixtureOfMemoriesConfig(LINEAR, num_memories=2, top_k=1, shared_memory=False, capacity=0.5)  # 6 of 24 tokens
    mixture, params = build(cfg)
    unlimited = dataclasses.replace(cfg, capacity=None).make(DIM)
    params["gate"]["kernel"] = jnp.zeros((DIM, 2)).at[0, 0].set(1.0)
    x = X.at[:, :, 0].set(jnp.where(jnp.arange(T) == 20, -9.0, 9.0))  # all to memory 0 but one
    y, state, _ = run(mixture, params, x)
    expected = run(unlimited, params, x)[0]
    assert_close(y[:, :6], expected[:, :6])
    assert not np.any(y[:, 6:20]) and not np.any(y[:, 21:]), "they read nothing"
    assert_close(y[:, 20], expected[:, 20])
    first = run(unlimited, params, x, only(0, 6))[1]
    assert_close(jax.tree.map(lambda leaf: leaf[:, 0], state.memories), jax.tree.map(lambda z: z[:, 0], first.memories))


@pytest.mark.parametrize("groups", [1, 2])
def test_work_does_not_grow_with_the_number_of_memories(groups):
    """Places per row: at most a quarter more than copies, and a block per memory at worst."""
    tokens, k = 512, 2
    shape = jax.ShapeDtypeStruct((1, tokens, k), jnp.int32)
    for M in (4, 16, 64):
        order = jax.eval_shape(
            lambda choice, M=M: order_by_memory(choice, jnp.ones((1, tokens), bool), None, M, groups).layout.ids, shape
        )
        assert order.shape == (groups, order.shape[1]) and order.shape[1] <= 1.25 * tokens * k + M


def test_flops_and_state():
    inner = DELTA.flops_per_token(DIM, 64)
    one = MixtureOfMemoriesConfig(DELTA, num_memories=1, top_k=1, shared_memory=False)
    assert one.flops_per_token(DIM, 64) == inner + 2 * DIM + 2 * 16
    more = dataclasses.replace(MOM, num_memories=8).flops_per_token(DIM, 64)
    assert more - MOM.flops_per_token(DIM, 64) == 2 * DIM * 4, "more memories cost the router only"
    held = DELTA.make(DIM).state_bytes() - 8
    assert MOM.make(DIM).state_bytes() == 5 * held + 8


REFUSED = {
    "inner": (lambda: MixtureOfMemoriesConfig(AttentionConfig()), "inner=AttentionConfig is not in three parts"),
    "too many": (lambda: MixtureOfMemoriesConfig(DELTA, num_memories=2, top_k=3), "top_k=3 exceeds num_memories=2"),
    "none": (lambda: MixtureOfMemoriesConfig(DELTA, num_memories=0), "num_memories=0 must be positive"),
    "capacity": (lambda: MixtureOfMemoriesConfig(DELTA, capacity=-1.0), "capacity=-1.0 must be positive"),
    "balance": (lambda: MixtureOfMemoriesConfig(DELTA, balance="global"), "balance='global' is unknown"),
    "weight": (lambda: MixtureOfMemoriesConfig(DELTA, balance_weight=-0.1), "balance_weight=-0.1 must be finite"),
    "no number": (lambda: MixtureOfMemoriesConfig(DELTA, z_loss_weight=math.nan), "z_loss_weight=nan must be finite"),
    "heads": (lambda: MixtureOfMemoriesConfig(GLAConfig(num_heads=7)).make(32), "num_heads=7 does not divide"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_configs_are_refused_in_one_line(case):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
