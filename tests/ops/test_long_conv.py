"""`long_conv`: brute-force documents and segments, gradients, resuming, isolation, memory, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.ops import long_conv
from seqmodels.ops.long_conv import causal
from seqmodels.ops.long_conv.cases import CASES
from tests.ops.sequences import insert_padding, run_alone
from tests.shared import relative_error

SMALL = {case.name: case for case in CASES if not case.large}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def small_matmuls(monkeypatch):
    """The FFT has its turn at small sizes, too."""
    monkeypatch.setattr(causal, "MATMUL", 16)


def loop(kernel):
    """The convolution of one sequence in numpy: ``([x [n,D]], state [L-1,D]) -> (y, state)``."""

    def run(inputs, state):
        line, taps = np.concatenate([state, inputs[0]]), kernel[::-1]
        y = np.zeros_like(inputs[0])
        for t in range(len(y)):
            y[t] = np.sum(line[t : t + len(taps)] * taps, axis=0)
        return y, line[len(y) :]

    return run


@pytest.mark.parametrize("name", ["fft", "documents", "short_taps", "segments", "long_taps"])
def test_forms_agree_in_float64(name):
    """Reference against numpy, chunked against the reference: outputs, states and all gradients."""
    case = SMALL[name]
    with jax.enable_x64(True):
        (x, kernel), options = case.make(jax.random.key(0), jnp.float64)
        state = options.pop("state", None)
        state = None if state is None else state.astype(jnp.float64)
        results = []
        for impl in ("reference", "chunked"):

            @quick
            def both(x, kernel, state, impl=impl):
                op = lambda x, kernel, state: long_conv(x, kernel, state=state, impl=impl, **options)  # noqa: E731
                out, pull = jax.vjp(op, x, kernel, state)
                return out, pull(tuple(jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape) for o in out))

            results.append(both(x, kernel, state))
        start = np.zeros_like(results[0][0][1]) if state is None else np.asarray(state)
        ids = options.get("segment_ids", np.ones(x.shape[:2], np.int32))
        expected = run_alone(loop(np.asarray(kernel)), [np.asarray(x)], start, ids, case.num_segments)
        for value, want in zip(results[0][0], expected, strict=True):
            np.testing.assert_allclose(value, want, rtol=0, atol=1e-12)
        for value, want in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(value, want, rtol=0, atol=1e-11)


def test_padding_is_inert_even_if_it_is_not_a_number():
    (x, kernel), options = SMALL["documents"].make(jax.random.key(1))
    ids = jnp.maximum(options["segment_ids"], 1)
    run = quick(lambda x, ids: long_conv(x, kernel, segment_ids=ids, state=options["state"]))
    y, after = run(x, ids)
    (padded,), padded_ids, kept = insert_padding([x], ids, [0, 0, 4, 50, 75, 75])
    padded[padded_ids == 0] = np.nan
    y2, after2 = run(padded, padded_ids)
    np.testing.assert_allclose(y2[:, kept], y, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(after2, after)
    assert not np.delete(y2, kept, axis=1).any()
    _, unchanged = run(padded, 0 * padded_ids)
    np.testing.assert_array_equal(unchanged, options["state"])


def test_split_equals_whole():
    (x, kernel), options = SMALL["plain"].make(jax.random.key(1))
    run = quick(long_conv)
    whole, last = run(x[:, :36], kernel, state=options["state"])
    first, state = run(x[:, :18], kernel, state=options["state"])
    second, state = run(x[:, 18:36], kernel, state=state)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(state, last)
    y, state = run(x[:, :0], kernel, state=last)
    assert y.shape == (2, 0, 3)
    np.testing.assert_array_equal(state, last)


def test_nothing_at_all_reaches_another_document():
    """A document of small numbers beside one of huge ones keeps its digits, and its gradients."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 90, 2)).astype(np.float32)
    ids = np.repeat([[1, 2, 3]], [30, 30, 30], axis=1).astype(np.int32)
    x[ids == 2] *= 1e20
    kernel = rng.standard_normal((90, 2)).astype(np.float32)

    @quick
    def both(x, ids):
        y, pull = jax.vjp(lambda x: long_conv(x, kernel, segment_ids=ids)[0], x)
        return y, pull(jnp.ones_like(y))[0]

    packed = both(x, ids)
    for name in (1, 3):
        alone = both(np.where((ids == name)[..., None], x, 0), np.ones_like(ids))
        at = ids[0] == name
        assert relative_error(packed[0][:, at], alone[0][:, at]) < 2e-6
        if name == 3:
            assert relative_error(packed[1][:, at], alone[1][:, at]) < 2e-6


def test_channels_in_groups(monkeypatch):
    (x, kernel), _ = SMALL["fft"].make(jax.random.key(2))

    def both(x, kernel):
        return jax.value_and_grad(lambda *args: jnp.sum(long_conv(*args)[0] ** 2), argnums=(0, 1))(x, kernel)

    want = quick(both)(x, kernel)
    monkeypatch.setattr(causal, "BUDGET", 2 * 2 * 129)  # two channels at a time
    for value, expected in zip(*map(jax.tree.leaves, (quick(lambda *a: both(*a))(x, kernel), want))):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_memory_of_a_quarter_million_tokens():
    """Temporaries of a gradient stay within a budget, however many channels there are."""
    x, kernel = jax.ShapeDtypeStruct((1, 262_144, 512), jnp.float32), jax.ShapeDtypeStruct((262_144, 512), jnp.float32)
    loss = lambda x, kernel: jnp.sum(long_conv(x, kernel)[0] ** 2)  # noqa: E731
    held = quick(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile().memory_analysis().temp_size_in_bytes
    assert held < 8 * 4 * 262_144 * 512


def test_bfloat16_keeps_its_dtype_and_a_float32_state():
    x, kernel = jax.random.normal(jax.random.key(2), (2, 9, 4), jnp.bfloat16), jnp.ones((3, 4))
    y, state = long_conv(x, kernel)
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    np.testing.assert_array_equal(state, x[:, -2:].astype(jnp.float32))


def test_fast_length():
    assert [causal.fast_length(n) for n in (1, 5, 6, 7, 9, 13, 4096, 5000)] == [1, 6, 6, 8, 12, 16, 4096, 6144]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((2, 5))}, r"x has shape \(2, 5\), expected \[B,T,D\]"),
        ({"kernel": jnp.ones((4, 2))}, r"kernel has shape \(4, 2\), expected \[L,D\] with D=3"),
        ({"kernel": jnp.ones((0, 3))}, r"length L of kernel=0 is not a positive int"),
        ({"kernel": jnp.ones((4, 3), jnp.int32)}, r"kernel has dtype int32, expected floating point"),
        ({"state": jnp.ones((2, 4, 3))}, r"state has shape \(2, 4, 3\), expected \[B,3,D\]"),
        ({"num_segments": 2}, r"num_segments=2 without segment_ids"),
    ],
)
def test_errors_say_what_to_do(change, message):
    arguments = {"x": jnp.ones((2, 5, 3)), "kernel": jnp.ones((4, 3))} | change
    with pytest.raises(ValueError, match=message) as caught:
        long_conv(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_segments", [None, 2])
def test_an_empty_batch(num_segments):
    ids = jnp.zeros((0, 5), jnp.int32)
    y, state = long_conv(jnp.zeros((0, 5, 2)), jnp.ones((4, 2)), segment_ids=ids, num_segments=num_segments)
    assert y.shape == (0, 5, 2) and state.shape == ((0, 3, 2) if num_segments is None else (0, 2, 3, 2))
