"""What tests of ops with a ``[B,H,K,V]`` state share: random problems, a float64 loop in numpy, and comparisons."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from seqmodels import ops
from tests.shared import golden, relative_error

EXTREME = np.array([0.0, -1e-8, -0.01, -1.0, -30.0, -1e4])  # log-decays that a precise chunked form must mix


class Problem(NamedTuple):
    """Arguments of `linear_attention` or, with ``beta``, of `delta_rule`, in numpy float32."""

    q: Any
    k: Any
    v: Any
    beta: Any = None
    log_decay: Any = None
    state: Any = None


def problem(seed, B, T, H, K, V, *, delta, decay, Hk=None, S=None, extreme=False) -> Problem:
    """Random inputs; `decay` is ``"none"``, ``"fixed"``, ``"scalar"`` or ``"vector"``."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    q, k, v = draw(B, T, Hk or H, K), draw(B, T, Hk or H, K), draw(B, T, H, V)
    if delta:
        k = k / np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-6).astype(np.float32)
    shape = {"none": None, "fixed": (H,), "scalar": (B, T, H), "vector": (B, T, H, K)}[decay]
    log_decay = None
    if shape is not None:
        log_decay = -np.logaddexp(0, 1 - 2 * draw(*shape)).astype(np.float32)
        if extreme:
            log_decay = random.choice(EXTREME, size=shape).astype(np.float32)
    beta = random.uniform(0, 2 if extreme else 1, (B, T, H)).astype(np.float32) if delta else None
    state = draw(B, H, K, V) if S is None else draw(B, S, H, K, V)
    return Problem(q, k, v, beta, log_decay, state)


def call(p: Problem, ids=None, S=None, *, impl="chunked", chunk_size=None, scale=None):
    """``(out, state)`` of the op that `p` is a problem of."""
    options = {
        "state": p.state,
        "segment_ids": ids,
        "num_segments": S,
        "impl": impl,
        "chunk_size": chunk_size,
        "scale": scale,
    }
    if p.beta is None:
        return ops.linear_attention(p.q, p.k, p.v, p.log_decay, **options)
    return ops.delta_rule(p.q, p.k, p.v, p.beta, p.log_decay, **options)


@functools.partial(jax.jit, static_argnames=("S", "impl", "chunk_size"))
def run(p: Problem, ids=None, *, S=None, impl="chunked", chunk_size=None):
    """`call`, jitted."""
    return call(p, ids, S, impl=impl, chunk_size=chunk_size)


@functools.partial(jax.jit, static_argnames=("S", "impl", "chunk_size"))
def gradients(p: Problem, cotangents, ids=None, *, S=None, impl="chunked", chunk_size=None):
    """``((out, state), gradients)``: a `Problem` of cotangents, ``None`` where the problem has ``None``."""
    outputs, pull = jax.vjp(lambda p: call(p, ids, S, impl=impl, chunk_size=chunk_size), p)
    return outputs, pull(cotangents)[0]


def loop(p: Problem, ids=None, S=None, scale=None):
    """The definition in float64 numpy, with one dict of states per row."""
    p = Problem(*(None if x is None else np.asarray(x, np.float64) for x in p))
    B, T, H, V = p.v.shape
    K, r = p.q.shape[-1], H // p.q.shape[2]
    scale = K**-0.5 if scale is None else scale
    g = np.zeros(H) if p.log_decay is None else p.log_decay
    g = np.broadcast_to(g, (B, T, H)) if g.ndim == 1 else g
    g = g[..., None] if g.ndim == 3 else g
    out, state = np.zeros((B, T, H, V)), np.array(p.state)
    for b in range(B):
        last = 0
        for t in range(T):
            here = 1 if ids is None else int(ids[b, t])
            if here == 0:
                continue
            slot = (b,) if S is None else (b, here - 1)
            if S is None and last not in (0, here):
                state[slot] = 0
            last = here
            for h in range(H):
                M, k = state[slot][h], p.k[b, t, h // r]
                M = np.exp(g[b, t, h])[:, None] * M
                v = p.v[b, t, h] if p.beta is None else p.beta[b, t, h] * (p.v[b, t, h] - M.T @ k)
                state[slot][h] = M + np.outer(k, v)
                out[b, t, h] = scale * state[slot][h].T @ p.q[b, t, h // r]
    return out, state


def documents(B, T, seed=0):
    """``[B,T]`` ids of packed documents, some of one token, with padding in front, between and behind."""
    random = np.random.default_rng(seed)
    ids = np.cumsum(random.random((B, T)) < 0.12, axis=1) + 1
    ids[random.random((B, T)) < 0.15] = 0
    ids[:, -2:] = 0
    ids[0, :2] = 0
    return ids.astype(np.int32)


def interleaved(B, T, S, seed=0):
    """``[B,T]`` ids 0..S in any order; the last segment stays empty."""
    return np.random.default_rng(seed).integers(0, max(S, 2), (B, T)).astype(np.int32)


def cotangents(p: Problem, seed=1):
    """Random cotangents of ``(out, state)``."""
    random = np.random.default_rng(seed)
    return tuple(random.standard_normal(x.shape).astype(np.float32) for x in (p.v, p.state))


def error(actual, expected) -> float:
    """``max|actual - expected| / max|expected|``."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.all(np.isfinite(actual)), "not finite"
    return float(np.max(np.abs(actual - expected), initial=0) / max(np.max(np.abs(expected), initial=0), 1e-30))


def assert_near(actual, expected, tolerance):
    """`error` of every leaf is at most `tolerance`."""
    errors = {
        jax.tree_util.keystr(path): error(a, e)
        for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    }
    assert max(errors.values()) <= tolerance, errors


def wide(tree):
    """Leaves as float64; call it inside ``jax.enable_x64``."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def check_golden(name, function, factor):
    """Outputs and all gradients of a golden case, each within `factor` times its tolerance.

    ``function(inputs, attrs, ids, S)`` maps the float inputs, by name, to outputs by name. Packed files become
    segments.
    """
    arrays, attrs, tolerances = golden(f"ops/{name}")
    outputs = {o: c for o, c in (("o", "do"), ("final_state", "dht"), ("final_z", "dzt")) if o in arrays}
    names = [n for n in arrays if f"d{n}" in arrays and n not in outputs]
    ids = S = None
    if attrs.get("packed"):
        lengths = np.diff(arrays["cu_seqlens"])
        ids, S = np.repeat(np.arange(len(lengths)) + 1, lengths)[None].astype(np.int32), len(lengths)

    @jax.jit
    def run(inputs, given):
        found, pull = jax.vjp(
            lambda inputs: {o: x for o, x in function(inputs, attrs, ids, S).items() if o in given}, inputs
        )
        return found, pull(given)[0]

    found, slopes = run({n: arrays[n] for n in names}, {o: arrays[c] for o, c in outputs.items()})
    assert set(found) == set(outputs)
    results = {**found, **{f"d{n}": slopes[n] for n in names}}
    ratios = {n: relative_error(x, arrays[n]) / tolerances[n] for n, x in results.items()}
    assert max(ratios.values()) <= factor, ratios


def table(state, S):
    """Golden files hold one state per segment, `ops` one table per row."""
    return state if S is None or state is None else state[None]


def untable(state, S):
    return state if S is None else state[0]


def check_documents(p: Problem, chunk_size):
    """Reference in float64 = numpy; chunked in float32 = reference in float64, gradients included."""
    B, T = p.v.shape[:2]
    _check_against_float64(p, documents(B, T), None, chunk_size)


def check_segments(p: Problem, S, chunk_size):
    """The same for interleaved segments; the state of the segment without tokens keeps its bits."""
    B, T = p.v.shape[:2]
    (_, state), _ = _check_against_float64(p, interleaved(B, T, S), S, chunk_size)
    np.testing.assert_array_equal(state[:, -1], p.state[:, -1])


def _check_against_float64(p, ids, S, chunk_size):
    given = cotangents(p)
    with jax.enable_x64(True):
        exact = gradients(wide(p), wide(given), ids, S=S, impl="reference")
        assert_near(exact[0], loop(p, ids, S), 1e-12)
        exact = jax.tree.map(np.asarray, exact)
    found = gradients(p, given, ids, S=S, chunk_size=chunk_size)
    np.testing.assert_array_equal(np.asarray(found[0][0])[ids == 0], 0)
    assert_near(found, exact, 1e-5)
    return found


def check_split(p: Problem, at=(0, 1, 17)):
    """``op(x[:, :t])`` then ``op(x[:, t:], state)`` is ``op(x)``, for every t of `at`; T is the empty second half."""
    whole = run(p)
    fixed = p.log_decay is not None and p.log_decay.ndim == 1
    cut = lambda x, part: None if x is None else x[:, part]  # noqa: E731
    for t in (*at, p.v.shape[1]):
        halves = []
        state = p.state
        for part in (slice(None, t), slice(t, None)):
            half = Problem(*(cut(x, part) for x in (p.q, p.k, p.v, p.beta)), p.log_decay, state)
            half = half if fixed else half._replace(log_decay=cut(p.log_decay, part))
            out, state = run(half)
            halves.append(out)
        assert_near((jnp.concatenate(halves, axis=1), state), whole, 3e-6)


def check_padding(p: Problem):
    """Padding may stand anywhere, and hold anything, NaN too: without it the rest is the same, and gradients are 0."""
    B, T = p.v.shape[:2]
    ids = np.ones((B, T + 9), np.int32)
    ids[:, [0, 1, 5, 11, 12, 13, 20, -2, -1]] = 0
    spread = lambda x: np.full((B, T + 9, *x.shape[2:]), np.nan, np.float32)  # noqa: E731

    def pad(x):
        y = spread(x)
        y[ids != 0] = x.reshape(B * T, *x.shape[2:])
        return y

    padded = Problem(*(None if x is None else pad(x) for x in p[:5]), p.state)
    given = cotangents(p)
    (out, state), slopes = gradients(padded, (pad(given[0]), given[1]), ids)
    expected, wanted = gradients(p, given)
    drop = lambda x: np.asarray(x)[ids != 0].reshape(B, T, *x.shape[2:])  # noqa: E731
    np.testing.assert_array_equal(np.asarray(out)[ids == 0], 0)
    assert_near((drop(out), state), expected, 2e-6)
    for name, slope, want in zip(Problem._fields[:5], slopes, wanted):
        if slope is not None:
            np.testing.assert_array_equal(np.asarray(slope)[ids == 0], 0, err_msg=name)
            assert_near(drop(slope), want, 5e-6)


def check_grouped(p: Problem):
    """Fewer key heads are repeated key heads."""
    r = p.v.shape[2] // p.q.shape[2]
    repeated = p._replace(q=np.repeat(p.q, r, axis=2), k=np.repeat(p.k, r, axis=2))
    assert_near(run(p), run(repeated), 1e-6)


def check_bfloat16(p: Problem):
    """bf16 inputs are exact floats: the state is that of float32, and the output differs by its rounding only."""
    low = p._replace(**{n: jnp.asarray(getattr(p, n), jnp.bfloat16) for n in ("q", "k", "v")})
    high = p._replace(**{n: np.asarray(getattr(low, n), np.float32) for n in ("q", "k", "v")})
    given = cotangents(p)
    (out, state), slopes = gradients(low, (jnp.asarray(given[0], jnp.bfloat16), given[1]))
    assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32 and slopes.q.dtype == jnp.bfloat16
    rounded = np.asarray(jnp.asarray(given[0], jnp.bfloat16), np.float32)
    (expected, final), wanted = gradients(high, (rounded, given[1]))
    assert_near(state, final, 1e-6)
    assert_near((out, slopes), (expected, wanted), 2.0**-8)


def check_mixed_decays(p: Problem):
    """Outputs one by one, not only against the largest: a weak decay behind a strong one keeps its bits."""
    out, state = run(p)
    expected, final = loop(p)
    for t in range(expected.shape[1]):
        assert_near(out[:, t], expected[:, t], 4e-6)
    assert_near(state, final, 4e-6)


def check_any_shape(data, *, delta, decays):
    """A drawn shape with its segments, against the loop in numpy."""
    draw = lambda name, low, high: data.draw(st.integers(low, high), label=name)  # noqa: E731
    B, T, Hk, r, K, V = (
        draw(*x) for x in (("B", 1, 2), ("T", 1, 40), ("Hk", 1, 2), ("r", 1, 2), ("K", 1, 9), ("V", 1, 9))
    )
    decay = data.draw(st.sampled_from(decays), label="decay")
    S = data.draw(st.sampled_from((None, 1, 3, 50)), label="S")
    chunk_size = data.draw(st.sampled_from((None, 1, 4, 16)), label="chunk_size")
    p = problem(T, B, T, Hk * r, K, V, delta=delta, decay=decay, Hk=Hk, S=S)
    ids = documents(B, T, seed=K) if S is None else interleaved(B, T, S, seed=K)
    assert_near(run(p, ids, S=S, chunk_size=chunk_size), loop(p, ids, S), 5e-6)
