"""SeqBoat against its equations written out in numpy, and the special cases of its parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.layers.ema import DampedEMA
from seqmodels.mixers import working_memory
from seqmodels.mixers.seqboat import SeqBoatConfig
from seqmodels.sharding import unbox
from tests.shared import relative_error

D, T = 8, 14
SMALL = SeqBoatConfig(head_dim=4, expand_v=1.5, ema_states=3, memory_size=2, max_gap=5)
X = jax.random.normal(jax.random.key(0), (2, T, D))
sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
silu = lambda x: x * sigmoid(x)  # noqa: E731


@functools.lru_cache
def initial(cfg, seed):
    return jax.tree.map(np.asarray, unbox(jax.jit(cfg.make(D).init)(jax.random.key(seed), X))["params"])


def parameters(cfg, seed=1):
    """Initial parameters with enough noise for every one to matter."""
    params = initial(cfg, seed)
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(lambda leaf: leaf + 0.4 * rng.standard_normal(leaf.shape).astype(np.float32), params)
    noisy["sma"]["configurator"]["router"]["bias"] = np.array([0.0, 0.3], np.float32)  # about half are active
    return noisy


@functools.partial(jax.jit, static_argnums=0)
def forward(cfg, params, x, state=None):
    return cfg.make(D).apply({"params": params}, x, state)


def averaged(p, x):
    """The moving average as its recurrence, one row [T,D]."""
    rate = sigmoid(p["delta"])
    q, h, out = 1 - rate * sigmoid(p["alpha"]), 0.0, []
    for x_t in x:
        h = q * h + rate * p["beta"] * x_t[:, None]
        out.append((p["gamma"] * h).sum(axis=1) / np.sqrt(h.shape[1]) + p["omega"] * x_t)
    return np.stack(out)


def turned(x, at, base=10000.0):
    half = x.shape[-1] // 2
    angle = at * base ** (-np.arange(half) / half)
    a, b = x[:half], x[half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


def by_hand(cfg, p, x):
    """One row, dense: every active query looks at all earlier active tokens and picks the last of them."""
    m = silu(averaged(p["ema"], x))
    configurator = p["sma"]["configurator"]
    u = m @ configurator["router"]["kernel"] + configurator["router"]["bias"]
    active = u[:, 1] > u[:, 0]
    confidence = sigmoid(np.abs(u[:, 1] - u[:, 0]) / np.exp(configurator["log_temperature"]))
    g, z, h = p["gau"], cfg.head_dim, cfg.value_width(D)
    hidden = silu(m @ g["in_proj"]["kernel"] + g["in_proj"]["bias"])
    base, r, v = np.split(hidden, (z, z + h), axis=-1)
    q, k = (base * g["gamma"][i] + g["beta"][i] for i in range(2))
    o = np.zeros((len(x), D))
    for t in np.flatnonzero(active):
        before = np.flatnonzero(active[: t + 1])
        keys = before[-(cfg.memory_size + 1) :]
        scale = z**-0.5 if cfg.attention == "softmax" else 1 / cfg.memory_size
        if cfg.position == "rotary":
            scores = np.array([turned(q[t], t) @ turned(k[s], s) for s in keys]) * scale
        else:
            gap = t - keys if cfg.position == "gap" else len(keys) - 1 - np.arange(len(keys))
            scores = k[keys] @ q[t] * scale + g["position_bias"][np.minimum(gap, len(g["position_bias"]) - 1)]
        weights = np.exp(scores) / np.exp(scores).sum() if cfg.attention == "softmax" else np.maximum(scores, 0) ** 2
        o[t] = confidence[t] * ((weights @ v[keys] * r[t]) @ g["out_proj"]["kernel"] + g["out_proj"]["bias"])
    return silu(m @ p["skip_proj"]["kernel"] + p["skip_proj"]["bias"] + o + x), active


@pytest.mark.parametrize(("attention", "position"), [("softmax", "rotary"), ("softmax", "gap"), ("relu2", "local")])
def test_the_layer(attention, position):
    cfg = dataclasses.replace(SMALL, attention=attention, position=position)
    params = parameters(cfg)
    y, state, aux = forward(cfg, params, X)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rows = [by_hand(cfg, double, np.asarray(x, np.float64)) for x in X]
    assert relative_error(y, np.stack([row for row, _ in rows])) <= 1e-5
    active = np.stack([mask for _, mask in rows])
    assert np.all((active.sum(axis=1) > 3) & (active.sum(axis=1) < T)), "the case is too easy"
    assert aux["stat/activation"] == pytest.approx(active.mean())
    for b in range(2):
        np.testing.assert_array_equal(state.memory.seat[b], np.flatnonzero(active[b])[-2:] + 1)


def test_a_bias_by_distance_survives_a_split():
    """The laws have rotary phases; the positions in the state serve the bias by gaps."""
    cfg = dataclasses.replace(SMALL, position="gap")
    params = parameters(cfg)
    whole, _, _ = forward(cfg, params, X)
    first, state, _ = forward(cfg, params, X[:, : T // 2])
    second, _, _ = forward(cfg, params, X[:, T // 2 :], state)
    assert relative_error(jnp.concatenate([first, second], axis=1), whole) <= 1e-5


def test_a_closed_router_leaves_the_recurrence():
    cfg = SMALL
    params = parameters(cfg)
    params["sma"]["configurator"]["router"]["bias"] = jnp.array([1e3, -1e3])
    y, state, aux = forward(cfg, params, X)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for x, row in zip(np.asarray(X, np.float64), y):
        m = silu(averaged(double["ema"], x))
        skip = m @ double["skip_proj"]["kernel"] + double["skip_proj"]["bias"]
        assert relative_error(row, silu(skip + x)) <= 1e-5
    assert aux["stat/activation"] == 0 and not np.any(state.memory.seat)


def test_capacity_drops_the_late_ones():
    cfg = SMALL
    params = parameters(cfg)
    whole, _, aux = forward(cfg, params, X)
    assert aux["stat/activation"] > 0.2 and aux["stat/overflow"] == 0
    short, _, aux = forward(dataclasses.replace(cfg, capacity=0.2), params, X)
    assert aux["stat/overflow"] > 0
    assert relative_error(short[:, :3], whole[:, :3]) <= 1e-6, "the first three tokens had room"
    assert relative_error(short, whole) > 1e-3


def test_moving_average():
    """A delta kernel for ``q -> 0``; and blocks, the recurrence and a carried state agree."""
    x = jnp.asarray(np.random.default_rng(3).standard_normal((1, 300, 2)), jnp.float32)
    ema, zero = DampedEMA(4), jnp.zeros((1, 2, 4))
    params = unbox(jax.jit(ema.init)(jax.random.key(0), x, zero))
    apply = jax.jit(ema.apply)
    y, state = apply(params, x, zero)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    assert relative_error(y[0], averaged(double, np.asarray(x[0], np.float64))) <= 1e-5
    first, carried = apply(params, x[:, :3], zero)
    second, last = apply(params, x[:, 3:], carried)
    assert relative_error(jnp.concatenate([first, second], axis=1), y) <= 1e-5
    assert relative_error(last, state) <= 1e-5
    open_ = {"params": params["params"] | {"delta": jnp.full((2, 4), 40.0), "alpha": jnp.full((2, 4), 40.0)}}
    weight = (double["beta"] * double["gamma"]).sum(axis=1) / 2 + double["omega"]
    assert relative_error(apply(open_, x, zero)[0], x * weight) <= 1e-5


def test_windows_are_those_of_dense_attention():
    """The last M written tokens before every query, in blocks, with a memory, for queries that are not written."""
    rng, M, length = np.random.default_rng(0), 3, 150
    written = rng.random((1, length)) < 0.3
    count = written.sum()
    notes = rng.standard_normal((1, count, 2)).astype(np.float32)
    q = rng.standard_normal((1, length, 2)).astype(np.float32)
    held = working_memory.WorkingMemory(
        (jnp.asarray(rng.standard_normal((1, M, 2)), jnp.float32),), jnp.array([[0, 4, 9]])
    )
    seat = np.flatnonzero(written)[None] + 10
    line = held.extended((notes,), jnp.asarray(seat), jnp.ones((1, count), jnp.int32))
    rank = jnp.asarray(np.cumsum(written, axis=1) - written, jnp.int32)
    seen = working_memory.windows(line, rank, jnp.ones((1, length), jnp.int32), M)
    out = working_memory.attend(jnp.asarray(q), seen.rows[0], seen.rows[0], seen.seen, scale=1.0)
    everything = np.concatenate([held.rows[0][0, 1:], notes[0]])
    for t in range(length):
        keys = everything[: 2 + written[0, :t].sum()][-M:]
        weights = np.exp(keys @ q[0, t])
        np.testing.assert_allclose(out[0, t], weights @ keys / weights.sum(), rtol=1e-4, atol=1e-5)
    after = line.memory(M, jnp.array([count]), jnp.array([1]))
    np.testing.assert_array_equal(after.rows[0][0], everything[-M:])
    assert not np.any(line.memory(M, jnp.array([count]), jnp.array([2])).seat), "another document's"


REFUSED = {
    "attention": (lambda: SeqBoatConfig(attention="linear"), "attention='linear' is unknown"),
    "capacity": (lambda: SeqBoatConfig(capacity=2.0), "capacity=2.0 exceeds 1"),
    "phases": (lambda: SeqBoatConfig(head_dim=3), "head_dim=3 is odd"),
    "values": (lambda: SeqBoatConfig(expand_v=0.3).make(32), "not a positive whole number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_configs_are_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
