"""`linear_scan`: golden vectors, brute-force documents and segments, adjoint, extremes, length, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmodels.ops import linear_scan
from seqmodels.ops.linear_scan.cases import CASES
from tests.ops.sequences import run_alone
from tests.shared import golden, relative_error

SMALL = [case for case in CASES if not case.large]
FORMS = [("reference", None), ("chunked", None), ("chunked", 16)]


def loop(inputs, state):
    """The recurrence in numpy."""
    a, b = inputs
    h, out = state, np.zeros(b.shape, np.result_type(a, b, state))
    for t in range(len(b)):
        h = out[t] = a[t] * h + b[t]
    return out, h


def with_gradients(f, *args):
    """Outputs of `f` and the gradients of a fixed random projection of them, with respect to all `args`."""

    def loss(*args):
        out = f(*args)
        leaves = jax.tree.leaves(out)
        weights = [np.cos(np.arange(leaf.size)).reshape(leaf.shape) for leaf in leaves]
        return sum(jnp.sum((leaf * w).real + (leaf * w).imag) for leaf, w in zip(leaves, weights)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=range(len(args)), has_aux=True))(*args)
    return out, grads


@pytest.mark.shared
@pytest.mark.parametrize(("impl", "chunk_size"), FORMS)
def test_golden_hgrn(impl, chunk_size):
    arrays, _, tol = golden("ops/hgrn")
    run = lambda x, g, state: linear_scan(jnp.exp(g), x, state=state, impl=impl, chunk_size=chunk_size)  # noqa: E731
    out, vjp = jax.vjp(jax.jit(run), *(jnp.asarray(arrays[n]) for n in ("x", "g", "initial_state")))
    grads = vjp((jnp.asarray(arrays["do"]), jnp.asarray(arrays["dht"])))
    for name, value in zip(("o", "final_state", "dx", "dg", "dinitial_state"), (*out, *grads), strict=True):
        assert relative_error(value, arrays[name]) <= (1 if impl == "reference" else 5) * tol[name], name


def rg_lru(x, a_param, wi, bi, wr, br, state, starts, segment_ids, **options):
    heads = x.reshape(*x.shape[:2], wi.shape[0], wi.shape[1])
    gate = lambda w, b: jax.nn.sigmoid(jnp.einsum("bthi,hij->bthj", heads, w) + b[None, None]).reshape(x.shape)  # noqa: E731
    log_a = -8.0 * gate(wr, br) * jax.nn.softplus(a_param)[None, None]
    factor = jnp.where(starts[..., None], 1.0, jnp.sqrt(-jnp.expm1(2 * log_a)))
    return linear_scan(jnp.exp(log_a), factor * gate(wi, bi) * x, state=state, segment_ids=segment_ids, **options)


@pytest.mark.shared
@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("suffix", ["", "_state", "_packed"])
def test_golden_rg_lru(suffix, impl):
    arrays, _, tol = golden(f"ops/rg_lru{suffix}")
    names = ["x", "a_param", "input_gate_weight", "input_gate_bias", "rec_gate_weight", "rec_gate_bias"]
    inputs = [jnp.asarray(arrays[name]) for name in names]
    starts = jnp.asarray(arrays["position_ids"] == 0)
    segment_ids = jnp.cumsum(starts, axis=1) if suffix == "_packed" else None
    state = jnp.asarray(arrays.get("initial_state", np.zeros((inputs[0].shape[0], inputs[0].shape[2]), np.float32)))
    run = functools.partial(rg_lru, starts=starts, segment_ids=segment_ids, impl=impl)
    out, vjp = jax.vjp(jax.jit(lambda *args: run(*args[:-1], state=args[-1])), *inputs, state)
    grads = vjp((jnp.asarray(arrays["do"]), jnp.asarray(arrays["dht"])))
    values = dict(zip(["o", "final_state", *(f"d{n}" for n in names), "dinitial_state"], (*out, *grads), strict=True))
    for name in tol:
        assert relative_error(values[name], arrays[name]) <= (1 if impl == "reference" else 5) * tol[name], name


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_forms_agree_in_float64(case):
    """Reference against numpy, every chunked form against the reference: outputs, states and all gradients."""
    with jax.enable_x64(True):
        (a, b), options = case.make(jax.random.key(0), jnp.float64)
        wide = np.complex128 if case.is_complex else np.float64
        a, state = a.astype(wide), options.pop("state").astype(wide)
        ids = options.get("segment_ids", jnp.ones(b.shape[:2], jnp.int32))
        expected = run_alone(loop, (np.asarray(a), np.asarray(b)), state, ids, case.num_segments)
        results = {}
        for impl, chunk_size in FORMS:
            run = lambda a, b, state, o=options | {"impl": impl, "chunk_size": chunk_size}: linear_scan(  # noqa: E731
                a, b, state=state, **o
            )
            results[impl, chunk_size] = with_gradients(run, a, b, state)
        for out, grads in results.values():
            for value, want in zip(out, expected, strict=True):
                assert relative_error(jnp.abs(value - want) + 1, np.ones(want.shape)) < 1e-12
            for value, want in zip(grads, results["reference", None][1], strict=True):
                assert value.dtype == want.dtype
                assert np.max(np.abs(value - want)) < 1e-11 * np.max(np.abs(want))


@pytest.mark.parametrize(("impl", "chunk_size"), FORMS)
def test_zero_one_and_the_unit_circle(impl, chunk_size):
    key = jax.random.key(1)
    b = jax.random.normal(key, (2, 300, 4))
    zero_one = (jax.random.uniform(key, b.shape) < 0.9).astype(jnp.float32)
    circle = jnp.exp(2j * jnp.pi * jax.random.uniform(key, (4,)))
    for a in (zero_one, circle):
        (h, state), grads = with_gradients(lambda a, b: linear_scan(a, b, impl=impl, chunk_size=chunk_size), a, b)
        a64 = np.broadcast_to(np.asarray(a).astype(np.complex128), b.shape)
        want, last = zip(*(loop((a64[i], np.asarray(b[i], np.float64)), np.zeros(4)) for i in range(2)))
        assert np.max(np.abs(h - np.stack(want))) < 2e-5 * np.max(np.abs(want))
        assert np.max(np.abs(state - np.stack(last))) < 2e-5 * np.max(np.abs(want))
        assert h.dtype == jnp.result_type(a, jnp.float32) and grads[0].shape == a.shape
        assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(("impl", "chunk_size"), FORMS)
def test_split_equals_whole(impl, chunk_size):
    (a, b), options = SMALL[0].make(jax.random.key(2))
    run = jax.jit(functools.partial(linear_scan, impl=impl, chunk_size=chunk_size))
    whole, last = run(a, b, state=options["state"])
    for t in (0, 1, 40, b.shape[1]):
        first, state = run(a[:, :t], b[:, :t], state=options["state"])
        second, state = run(a[:, t:], b[:, t:], state=state)
        np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=0, atol=2e-6)
        np.testing.assert_allclose(state, last, rtol=0, atol=2e-6)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("num_segments", [None, 3])
def test_no_tokens_and_no_real_tokens_keep_the_state(impl, num_segments):
    state = jax.random.normal(jax.random.key(3), (2, 4) if num_segments is None else (2, num_segments, 4))
    for length in (0, 5):
        x = jnp.full((2, length, 4), 3.0)
        ids = jnp.zeros((2, length), jnp.int32)
        options = {"segment_ids": ids, "num_segments": num_segments, "impl": impl}
        run = functools.partial(lambda x, state, o: linear_scan(x, x, state=state, **o), o=options)
        (h, after), (dx, dstate) = with_gradients(run, x, state)
        assert (h == 0).all() and (after == state).all() and (dx == 0).all()
        assert dstate.shape == state.shape and (dstate != 0).all()


def test_bfloat16_keeps_its_dtype_and_a_float32_state():
    (a, b), options = SMALL[0].make(jax.random.key(4))
    low, state = linear_scan(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), state=options["state"])
    high, _ = linear_scan(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16).astype(jnp.float32), state=options["state"])
    assert low.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    np.testing.assert_array_equal(low, high.astype(jnp.bfloat16))


@pytest.mark.parametrize("chunk_size", [None, 512])
def test_drift_over_65536_tokens(chunk_size):
    rng = np.random.default_rng(0)
    a = np.concatenate([rng.uniform(0.999, 1.0, (65_536, 2)), np.ones((65_536, 1))], axis=1).astype(np.float32)
    b = rng.standard_normal((65_536, 3)).astype(np.float32)
    want, _ = loop((a.astype(np.float64), b.astype(np.float64)), np.zeros(3))
    h, _ = jax.jit(functools.partial(linear_scan, impl="chunked", chunk_size=chunk_size))(a[None], b[None])
    error = np.max(np.abs(h[0] - want), axis=0) / np.max(np.abs(want), axis=0)
    assert (error < 2.0**-24 * 65_536**0.5).all(), error  # independent roundings add up like a random walk


def test_memory_of_the_gradient_is_linear_in_time():
    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 32), jnp.float32)
        f = jax.grad(lambda a, b: jnp.sum(linear_scan(a, b, impl="chunked")[0] ** 2), (0, 1))
        return jax.jit(f).lower(x, x).compile().memory_analysis().temp_size_in_bytes / (length * 32 * 4)

    assert temporaries(16_384) < 8
    assert temporaries(16_384) < 1.1 * temporaries(4_096)


def test_accelerators_get_the_parallel_form():
    x = jax.ShapeDtypeStruct((1, 64, 4), jnp.float32)
    trace = jax.jit(linear_scan).trace(x, x)
    assert "stablehlo.while" in trace.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" not in trace.lower(lowering_platforms=("cuda",)).as_text()


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    length=st.integers(0, 9),
    channels=st.sampled_from([(), (3,), (2, 2)]),
    num_segments=st.sampled_from([None, 1, 3]),
    chunk_size=st.sampled_from([None, 1, 4]),
    seed=st.integers(0, 1000),
)
def test_any_shape(length, channels, num_segments, chunk_size, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform(0, 1, (2, length, *channels)).astype(np.float32) for _ in range(2))
    ids = rng.integers(0, (num_segments or 3) + 1, (2, length)).astype(np.int32)
    state = rng.standard_normal((2, *([num_segments] if num_segments else []), *channels)).astype(np.float32)
    run = jax.jit(functools.partial(linear_scan, num_segments=num_segments, chunk_size=chunk_size))
    h, last = run(a, b, state=state, segment_ids=ids)
    want, want_last = run_alone(loop, (a, b), state, ids, num_segments)
    np.testing.assert_allclose(h, np.zeros(b.shape) if want is None else want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(last, want_last, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": jnp.ones(3)}, "b has shape"),
        ({"a": jnp.ones((2, 5, 2))}, "a has shape"),
        ({"b": jnp.ones((2, 5, 3), int)}, "b has dtype int32"),
        ({"state": jnp.ones((2, 4))}, "state has shape"),
        ({"state": jnp.ones((2, 3), jnp.complex64)}, "state has dtype complex64"),
        ({"segment_ids": jnp.ones((2, 4), jnp.int32)}, "segment_ids has shape"),
        ({"num_segments": 2}, "num_segments=2 without segment_ids"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"impl": "chunky"}, "did you mean 'chunked'"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    arguments = {"a": jnp.ones((2, 5, 3)), "b": jnp.ones((2, 5, 3))} | change
    with pytest.raises(ValueError, match=message) as error:
        linear_scan(arguments.pop("a"), arguments.pop("b"), **arguments)
    assert "\n" not in str(error.value)
