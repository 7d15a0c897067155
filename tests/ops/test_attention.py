"""`attention`: golden vectors, brute force in float64, gradients, caches, memory and errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmodels.ops import attention
from seqmodels.ops.attention.cases import CASES
from seqmodels.ops.attention.mask import visible_blocks
from tests.ops.sequences import documents_of, insert_padding
from tests.shared import golden, relative_error

SMALL = [case for case in CASES if not case.large]


def brute_force(q, k, v, causal, window, scale, sink=None, segment_ids=None, positions=None, kv_positions=None):
    """One query after the other, in numpy."""
    batch, length, heads, _ = q.shape
    out = np.zeros((batch, length, heads, v.shape[-1]))
    for b in range(batch):
        documents = [list(range(length))] if segment_ids is None else documents_of(np.asarray(segment_ids[b]))
        for document in documents:
            for number, t in enumerate(document):
                if positions is None:
                    keys = np.asarray(document)
                    distance = number - np.arange(len(document))
                else:
                    keys = np.flatnonzero(np.asarray(kv_positions[b]) >= 0)
                    distance = int(positions[t]) - np.asarray(kv_positions[b])[keys]
                seen = np.ones(len(keys), bool)
                if causal:
                    seen &= distance >= 0
                if window is not None:
                    seen &= np.abs(distance) < window
                for h in range(heads):
                    g = h // (heads // k.shape[2])
                    weight = np.exp(k[b, keys[seen], g] @ q[b, t, h] * scale)
                    total = weight.sum() + (0 if sink is None else np.exp(sink[h]))
                    out[b, t, h] = weight @ v[b, keys[seen], g] / total if total else 0
    return out


@pytest.mark.shared
@pytest.mark.parametrize(("impl", "factor"), [("reference", 1), ("chunked", 5)])
@pytest.mark.parametrize("name", ["causal", "gqa", "sliding_window", "sink", "bidirectional", "packed"])
def test_golden(name, impl, factor):
    arrays, attrs, tol = golden(f"ops/attn_{name}")
    ids = arrays["segment_ids"] + 1 if name == "packed" else None
    options = {key: attrs[key] for key in ("causal", "window", "scale")} | {"segment_ids": ids, "impl": impl}
    given = {n: jnp.asarray(arrays[n]) for n in ("q", "k", "v", "sink_bias") if n in arrays}

    @jax.jit
    def run(given, do):
        f = lambda x: attention(x["q"], x["k"], x["v"], sink=x.get("sink_bias"), chunk_size=32, **options)  # noqa: E731
        out, vjp = jax.vjp(f, given)
        return {"o": out, **{f"d{n}": g for n, g in vjp(do)[0].items()}}

    for key, value in run(given, jnp.asarray(arrays["do"])).items():
        assert relative_error(value, arrays[key]) <= factor * tol[key], key


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_forms_agree_in_float64(case):
    """Reference against numpy, chunked against the reference: outputs and all gradients."""
    with jax.enable_x64(True):
        (q, k, v), options = case.make(jax.random.key(0), jnp.float64)
        options["sink"] = options["sink"].astype(jnp.float64) if case.sink else None
        rest = {n: x for n, x in options.items() if n not in ("chunk_size", "sink")}
        results = []
        for impl in ("reference", "chunked"):
            run = functools.partial(attention, **rest, impl=impl, chunk_size=options["chunk_size"])

            @jax.jit
            def out_and_grads(q, k, v, sink, run=run):
                out, vjp = jax.vjp(lambda q, k, v, sink: run(q, k, v, sink=sink), q, k, v, sink)
                return out, vjp(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

            results.append(out_and_grads(q, k, v, options["sink"]))
        want = brute_force(*(np.asarray(x) for x in (q, k, v)), scale=case.size**-0.5, sink=options["sink"], **rest)
        np.testing.assert_allclose(results[0][0], want, rtol=0, atol=1e-12)
        for value, other in zip(*(jax.tree.leaves(r) for r in results), strict=True):
            np.testing.assert_allclose(value, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("window", [None, 4])
def test_padding_is_inert_wherever_it_stands(impl, window):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 12, 2, 4)).astype(np.float32) for _ in range(3))
    ids = np.repeat([[1, 1, 2, 1], [3, 3, 3, 1]], 3, axis=1)  # an id that returns is a new document
    run = jax.jit(functools.partial(attention, window=window, impl=impl, chunk_size=5))
    out = run(q, k, v, segment_ids=ids)
    padded, padded_ids, kept = insert_padding([q, k, v], ids, [0, 0, 4, 5, 5, 5, 5, 11, 12, 12])
    wide = run(*padded, segment_ids=padded_ids)
    np.testing.assert_allclose(wide[:, kept], out, rtol=0, atol=1e-6)
    assert (np.delete(wide, kept, axis=1) == 0).all()


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_rows_that_see_nothing_are_zero_with_finite_gradients(impl):
    q, k, v = (jax.random.normal(key, (2, 9, 2, 4)) for key in jax.random.split(jax.random.key(1), 3))
    ids = jnp.array([[0] * 9, [1, 1, 2, 0, 2, 3, 3, 0, 0]])
    nowhere = {"positions": jnp.arange(9), "kv_positions": jnp.array([[-1] * 9, [20] * 8 + [0]])}
    for options in ({"segment_ids": ids}, nowhere, nowhere | {"causal": False}):
        f = jax.jit(functools.partial(attention, impl=impl, chunk_size=4, **options))
        out = f(q, k, v)
        grads = jax.grad(lambda q, k, v, f=f: jnp.sum(f(q, k, v) ** 2), (0, 1, 2))(q, k, v)
        assert (out[0] == 0).all() and jnp.abs(out[1]).max() > 0
        assert all(np.isfinite(g).all() and (g[0] == 0).all() for g in grads)


def test_ring_buffer_gives_what_a_window_gives():
    """Decoding token by token with a cache of `window` slots."""
    window, length = 4, 11
    q, k, v = (jax.random.normal(key, (2, length, 2, 4)) for key in jax.random.split(jax.random.key(2), 3))
    whole = attention(q, k, v, window=window, impl="reference")
    run = jax.jit(functools.partial(attention, window=window))
    keys, values, places = jnp.zeros((2, window, 2, 4)), jnp.zeros((2, window, 2, 4)), jnp.full((2, window), -1)
    for t in range(length):
        slot = t % window
        keys, values = keys.at[:, slot].set(k[:, t]), values.at[:, slot].set(v[:, t])
        places = places.at[:, slot].set(t)
        out = run(q[:, t : t + 1], keys, values, positions=jnp.full((2, 1), t), kv_positions=places)
        np.testing.assert_allclose(out[:, 0], whole[:, t], rtol=0, atol=1e-6)


def test_ids_of_a_cache_separate_documents():
    q, k, v = (jax.random.normal(key, (2, 6, 2, 4)) for key in jax.random.split(jax.random.key(3), 3))
    ids, at = jnp.array([[5, 5, 5, 0, 7, 7]] * 2), jnp.array([[0, 1, 2, 0, 0, 1]] * 2)
    want = attention(q, k, v, segment_ids=ids, impl="reference")
    turn = lambda x: jnp.roll(x, 2, axis=1)  # noqa: E731
    for impl in ("reference", "chunked"):
        options = {"segment_ids": ids, "kv_segment_ids": turn(ids), "positions": at, "kv_positions": turn(at)}
        out = jax.jit(functools.partial(attention, impl=impl, chunk_size=4, **options))(q, turn(k), turn(v))
        np.testing.assert_allclose(out, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_no_queries_and_no_keys(impl):
    q, k = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 0, 2, 4))
    at, none = jnp.arange(3), jnp.zeros((0,), jnp.int32)
    out = attention(q, k, k, positions=at, kv_positions=none, impl=impl, chunk_size=2)
    assert out.shape == q.shape and (out == 0).all()
    assert attention(k, q, q, positions=none, kv_positions=at, impl=impl, chunk_size=2).shape == k.shape
    assert attention(k, k, k, impl=impl).shape == k.shape
    one = attention(q[:, :1], q[:, :1], 3 * q[:, :1], impl=impl)
    np.testing.assert_allclose(one, 3 * q[:, :1])


def test_bfloat16_is_near_float32():
    (q, k, v), options = SMALL[1].make(jax.random.key(4), jnp.bfloat16)
    loss = lambda q, k, v: jnp.sum(attention(q, k, v, **options).astype(jnp.float32) ** 2)  # noqa: E731
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    low = gradients(q, k, v)
    high = gradients(*(x.astype(jnp.float32) for x in (q, k, v)))
    assert jax.eval_shape(attention, q, k, v).dtype == jnp.bfloat16
    for value, want in zip(low, high, strict=True):
        assert value.dtype == jnp.bfloat16
        assert relative_error(value.astype(jnp.float32), want) < 0.03


def test_memory_is_linear_in_time_and_a_window_visits_a_band():
    def compiled(length, window=None):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        f = jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v, window=window) ** 2), (0, 1, 2))
        return jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert compiled(8192) < 4.4 * compiled(2048)

    def visited(length, window, causal=True):
        return len(visible_blocks((length // 64,) * 2, (64, 64), causal=causal, window=window)[0])

    assert visited(6400, None) == 100 * 101 // 2
    assert visited(6400, 64) == 100 + 99
    assert visited(6400, 66) == 100 + 99 + 98
    assert visited(6400, 64, causal=False) == 100 + 2 * 99


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    length=st.integers(0, 9),
    repeat=st.integers(1, 2),
    window=st.sampled_from([None, 1, 3]),
    causal=st.booleans(),
    block=st.sampled_from([None, 1, 4]),
    seed=st.integers(0, 1000),
)
def test_any_shape(length, repeat, window, causal, block, seed):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((2, length, 2 * repeat, 3)).astype(np.float32)
    k = rng.standard_normal((2, length, 2, 3)).astype(np.float32)
    v = rng.standard_normal((2, length, 2, 5)).astype(np.float32)
    ids = rng.integers(0, 4, (2, length)).astype(np.int32)
    run = jax.jit(functools.partial(attention, causal=causal, window=window, chunk_size=block, scale=0.5))
    want = brute_force(q, k, v, causal, window, 0.5, segment_ids=ids)
    np.testing.assert_allclose(run(q, k, v, segment_ids=ids), want, rtol=0, atol=1e-5)


ONES = jnp.ones((2, 5, 4, 8))
IDS = jnp.ones((2, 5), jnp.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.ones((2, 5, 8))}, "q has shape"),
        ({"k": jnp.ones((2, 5, 4, 7))}, "k has shape"),
        ({"v": jnp.ones((2, 6, 4, 8))}, "v has shape"),
        ({"k": jnp.ones((2, 5, 3, 8)), "v": jnp.ones((2, 5, 3, 8))}, "not a multiple"),
        ({"q": jnp.ones((2, 5, 4, 8), int)}, "q has dtype int32"),
        ({"sink": jnp.ones(3)}, "sink has shape"),
        ({"window": 0}, "window=0"),
        ({"segment_ids": IDS[:, 1:]}, "segment_ids has shape"),
        ({"positions": jnp.ones((2, 5))}, "positions has dtype"),
        ({"kv_positions": IDS}, "kv_positions without positions"),
        ({"kv_segment_ids": IDS}, "kv_segment_ids without segment_ids"),
        ({"segment_ids": IDS, "kv_segment_ids": IDS}, "kv_segment_ids without positions"),
        ({"q": ONES[:, :3]}, "3 queries against 5 keys need positions"),
        ({"q": ONES[:, :3], "segment_ids": IDS[:, :3], "causal": False}, "need kv_segment_ids"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    arguments = {"q": ONES, "k": ONES, "v": ONES} | change
    with pytest.raises(ValueError, match=message) as error:
        attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)
    assert "\n" not in str(error.value)
