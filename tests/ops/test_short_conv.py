"""`short_conv`: golden vectors, brute-force documents and segments, gradients, resuming, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmodels.ops import short_conv
from seqmodels.ops.short_conv.cases import CASES
from tests.ops.sequences import insert_padding, run_alone
from tests.shared import golden, relative_error

SMALL = [case for case in CASES if not case.large]


def loop(weight, bias, activation):
    """The convolution of one sequence in numpy: ``([x [n,D]], state [W-1,D]) -> (y, state)``."""

    def run(inputs, state):
        line = np.concatenate([state, inputs[0]])
        n, width = len(inputs[0]), len(weight)
        y = np.stack([np.sum(line[t : t + width] * weight, axis=0) for t in range(n)]) if n else inputs[0]
        y = y if bias is None else y + bias
        return y / (1 + np.exp(-y)) if activation == "silu" else y, line[n:]

    return run


@pytest.mark.shared
@pytest.mark.parametrize(("impl", "factor"), [("reference", 1), ("chunked", 5)])
@pytest.mark.parametrize("name", ["silu", "plain", "packed"])
def test_golden(name, impl, factor):
    arrays, attrs, tol = golden(f"ops/short_conv_{name}")
    given = {n: arrays[n] for n in ("x", "weight", "bias", "initial_state") if n in arrays}
    segments = len(arrays["initial_state"]) if name == "packed" else None
    lead = lambda s: s[None] if segments else s  # noqa: E731

    def run(inputs):
        state = inputs.get("initial_state")
        y, state = short_conv(
            inputs["x"],
            inputs["weight"].T,
            inputs.get("bias"),
            activation=None if attrs["activation"] == "none" else attrs["activation"],
            state=None if state is None else lead(state.swapaxes(1, 2)),
            segment_ids=arrays["segment_ids"] + 1 if segments else None,
            num_segments=segments,
            impl=impl,
        )
        return {"o": y, "final_state": (state[0] if segments else state).swapaxes(1, 2)}

    out, vjp = jax.vjp(jax.jit(run), {n: jnp.asarray(a) for n, a in given.items()})
    (grads,) = vjp({"o": jnp.asarray(arrays["do"]), "final_state": jnp.asarray(arrays["dht"])})
    for key, value in (out | {f"d{n}": g for n, g in grads.items()}).items():
        if key in arrays:
            assert relative_error(value, arrays[key]) <= factor * tol.get(key, 5e-6), key


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_forms_agree_in_float64(case):
    """Reference against numpy, chunked against the reference: outputs, states and all gradients."""
    with jax.enable_x64(True):
        (x, weight, bias), options = case.make(jax.random.key(0), jnp.float64)
        state = options.pop("state").astype(jnp.float64)
        bias = jnp.zeros(case.channels) if bias is None else bias
        ids = np.asarray(options.get("segment_ids", np.ones(x.shape[:2], np.int32)))
        run = loop(np.asarray(weight), np.asarray(bias), case.activation)
        expected = run_alone(run, [np.asarray(x)], state, ids, case.num_segments)
        results = []
        for impl in ("reference", "chunked"):
            f = jax.jit(lambda x, w, b, s, impl=impl: short_conv(x, w, b, state=s, impl=impl, **options))
            out, vjp = jax.vjp(f, x, weight, bias, state)
            for value, want in zip(out, expected, strict=True):
                np.testing.assert_allclose(value, want, rtol=0, atol=1e-12)
            results.append(vjp(tuple(jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape) for o in out)))
        for value, want in zip(*results, strict=True):
            np.testing.assert_allclose(value, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("num_segments", [None, 3])
def test_padding_is_inert_wherever_it_stands(impl, num_segments):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 12, 4)).astype(np.float32)
    ids = rng.integers(1, 4, (2, 12)) if num_segments else np.repeat([[1, 1, 2, 3], [2, 2, 2, 1]], 3, axis=1)
    state = rng.standard_normal((2, *([3] if num_segments else []), 3, 4)).astype(np.float32)
    weight = rng.standard_normal((4, 4)).astype(np.float32)
    run = jax.jit(functools.partial(short_conv, num_segments=num_segments, impl=impl, activation="silu"))
    y, after = run(x, weight, np.ones(4, np.float32), state=state, segment_ids=ids)
    (padded,), padded_ids, kept = insert_padding([x], ids, [0, 0, 4, 5, 5, 5, 5, 11, 12, 12])
    y2, after2 = run(padded, weight, np.ones(4, np.float32), state=state, segment_ids=padded_ids)
    np.testing.assert_allclose(y2[:, kept], y, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(after2, after)
    assert (np.delete(y2, kept, axis=1) == 0).all()
    _, unchanged = run(padded, weight, np.ones(4, np.float32), state=state, segment_ids=0 * padded_ids)
    np.testing.assert_array_equal(unchanged, state)


def test_second_derivatives_of_packed_documents():
    rng = np.random.default_rng(0)
    x, weight, t = rng.standard_normal((1, 9, 2)), rng.standard_normal((3, 2)), rng.standard_normal((1, 9, 2))
    with jax.enable_x64(True):
        for ids in ([[1, 1, 1, 2, 3, 3, 3, 3, 3]], [[1, 0, 1, 2, 0, 0, 3, 3, 3]]):

            def bend(impl, x, weight, ids=ids):
                loss = lambda x: jnp.sum(short_conv(x, weight, segment_ids=jnp.asarray(ids), impl=impl)[0] ** 3)  # noqa: E731
                return jnp.sum(jax.grad(loss)(x) * t)

            ours, want = (
                jax.grad(functools.partial(bend, impl), argnums=(0, 1))(x, weight) for impl in ("chunked", "reference")
            )
            for value, expected in zip(ours, want, strict=True):
                np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_split_equals_whole(impl):
    (x, weight, bias), options = CASES[1].make(jax.random.key(1))
    run = jax.jit(functools.partial(short_conv, activation="silu", impl=impl))
    whole, last = run(x, weight, bias, state=options["state"])
    for t in (0, 1, 2, 20, 21):
        first, state = run(x[:, :t], weight, bias, state=options["state"])
        second, state = run(x[:, t:], weight, bias, state=state)
        np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(state, last)


def test_bfloat16_keeps_its_dtype_and_a_float32_state():
    x = jax.random.normal(jax.random.key(2), (2, 9, 4), jnp.bfloat16)
    weight = jax.random.normal(jax.random.key(3), (4, 4))
    y, state = short_conv(x, weight, activation="silu")
    want, _ = short_conv(x.astype(jnp.float32), weight, activation="silu")
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))
    np.testing.assert_array_equal(state, x[:, -3:].astype(jnp.float32))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    length=st.integers(0, 8),
    width=st.integers(1, 5),
    num_segments=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_any_shape(length, width, num_segments, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, length, 3)).astype(np.float32)
    weight = rng.standard_normal((width, 3)).astype(np.float32)
    ids = rng.integers(0, (num_segments or 3) + 1, (2, length)).astype(np.int32)
    state = rng.standard_normal((2, *([num_segments] if num_segments else []), width - 1, 3)).astype(np.float32)
    run = jax.jit(functools.partial(short_conv, num_segments=num_segments))
    y, last = run(x, weight, state=state, segment_ids=ids)
    want, want_last = run_alone(loop(weight, None, None), [x], state, ids, num_segments)
    np.testing.assert_allclose(y, np.zeros(x.shape) if want is None else want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(last, want_last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((2, 3))}, "x has shape"),
        ({"x": jnp.ones((2, 5, 3), int)}, "x has dtype int32"),
        ({"weight": jnp.ones((3, 4))}, "weight has shape"),
        ({"weight": jnp.ones((0, 3))}, "width W of weight=0"),
        ({"bias": jnp.ones(4)}, "bias has shape"),
        ({"state": jnp.ones((2, 4, 3))}, "state has shape"),
        ({"segment_ids": jnp.ones((2, 4), jnp.int32)}, "segment_ids has shape"),
        ({"num_segments": 2}, "num_segments=2 without segment_ids"),
        ({"activation": "relu"}, "activation='relu'"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    arguments = {"x": jnp.ones((2, 5, 3)), "weight": jnp.ones((4, 3))} | change
    with pytest.raises(ValueError, match=message) as error:
        short_conv(arguments.pop("x"), arguments.pop("weight"), arguments.pop("bias", None), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_resets_split_segments_into_documents(impl):
    """Every token of a segment, one after the other in numpy; the state is forgotten at a reset."""
    random = np.random.default_rng(0)
    B, T, D, W, S = 2, 15, 3, 4, 3
    x, weight = random.normal(size=(B, T, D)), random.normal(size=(W, D))
    state, ids, resets = (
        random.normal(size=(B, S, W - 1, D)),
        random.integers(0, S + 1, (B, T)),
        random.random((B, T)) < 0.3,
    )
    run = loop(weight, None, "silu")
    expected, after = np.zeros_like(x), state.copy()
    for b, t in np.ndindex(B, T):
        if ids[b, t]:
            held = after[b, ids[b, t] - 1] * (1 - resets[b, t])
            y, after[b, ids[b, t] - 1] = run([x[b, t : t + 1]], held)
            expected[b, t] = y[0]
    y, last = short_conv(
        *(jnp.asarray(a, jnp.float32) for a in (x, weight)),
        activation="silu",
        state=jnp.asarray(state, jnp.float32),
        segment_ids=jnp.asarray(ids),
        num_segments=S,
        resets=jnp.asarray(resets),
        impl=impl,
    )
    assert relative_error(y, expected) < 1e-6 and relative_error(last, after) < 1e-6


def test_resets_need_segments():
    with pytest.raises(ValueError, match="resets without num_segments"):
        short_conv(jnp.ones((1, 2, 3)), jnp.ones((4, 3)), resets=jnp.zeros((1, 2), bool))
