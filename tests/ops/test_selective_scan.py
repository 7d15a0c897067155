"""`selective_scan`: golden vectors, brute-force documents and segments, gradients, extremes, length, memory, errors."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmodels.ops import selective_scan
from seqmodels.ops.selective_scan import chunked
from seqmodels.ops.selective_scan.cases import CASES
from tests.ops.sequences import insert_padding, run_alone
from tests.shared import golden, relative_error

FORMS = {"reference": ("reference", None), "chunked": ("chunked", 24)}
SMALL = {case.name: case for case in CASES if not case.large}


class Problem(NamedTuple):
    """Array arguments of the op."""

    x: Any
    dt: Any
    A: Any
    B: Any
    C: Any
    D: Any = None
    z: Any = None
    delta_bias: Any = None
    state: Any = None


# Small programs that run once or twice: their compilation is what takes time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
STATIC = ("softplus", "num_segments", "impl", "chunk_size")


def call(p: Problem, **options):
    return selective_scan(*p[:7], delta_bias=p.delta_bias, state=p.state, **options)


@functools.partial(quick, static_argnames=STATIC)
def run(p: Problem, **options):
    return call(p, **options)


@functools.partial(quick, static_argnames=STATIC)
def gradients(p: Problem, cotangents, **options):
    """``((y, state), gradients)``, the gradients as a `Problem`."""
    outputs, pull = jax.vjp(lambda p: call(p, **options), p)
    return outputs, pull(cotangents)[0]


def problem(case, dtype=jnp.float32):
    """``(Problem, options)`` of a case."""
    args, options = case.make(jax.random.key(0), dtype)
    return Problem(*args)._replace(delta_bias=options.pop("delta_bias"), state=options.pop("state")), options


def cotangents(p: Problem):
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in (p.x, p.state))


def loop(p: Problem, inputs, h):
    """The recurrence of one sequence in numpy: ``inputs`` are x, dt, B, C and z, ``h [D,N]``."""
    x, dt, B, C, *z = (np.asarray(leaf, np.float64) for leaf in inputs)
    A, D, bias = (None if leaf is None else np.asarray(leaf, np.float64) for leaf in (p.A, p.D, p.delta_bias))
    dt = np.logaddexp(0, dt + bias)
    group = np.arange(A.shape[0]) * B.shape[1] // A.shape[0]
    y = np.zeros_like(x)
    for t in range(len(x)):
        h = np.exp(dt[t][:, None] * A) * h + (dt[t] * x[t])[:, None] * B[t, group]
        y[t] = np.sum(h * C[t, group], axis=1) + (0 if D is None else D * x[t])
    return (y * z[0] / (1 + np.exp(-z[0])) if z else y), h


def expected(p: Problem, segment_ids=None, num_segments=None, **_):
    """`loop` over every document or segment alone."""
    ids = np.ones(p.x.shape[:2], int) if segment_ids is None else segment_ids
    grouped = lambda rows: rows if rows.ndim == 4 else rows[:, :, None]  # noqa: E731
    inputs = [np.asarray(leaf) for leaf in (p.x, p.dt, grouped(p.B), grouped(p.C), p.z) if leaf is not None]
    return run_alone(functools.partial(loop, p), inputs, np.asarray(p.state, np.float64), ids, num_segments)


def wide(tree):
    """Leaves as float64; call it inside ``jax.enable_x64``."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


@pytest.mark.shared
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["selective_scan", "selective_scan_plain", "selective_scan_groups"])
def test_golden(name, form):
    impl, chunk_size = FORMS[form]
    arrays, attrs, tolerances = golden(f"ops/{name}")
    names = [n for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias") if n in arrays]
    time_first = lambda array, axes: np.moveaxis(array, -1, 1) if axes >= 3 else array  # noqa: E731

    @quick
    def both(inputs, given):
        def forward(inputs):
            args = {"D": None, "z": None, "delta_bias": None, **inputs}
            options = {"softplus": attrs["delta_softplus"], "impl": impl, "chunk_size": chunk_size}
            order = [args[n] for n in ("u", "delta", "A", "B", "C", "D", "z")]
            return selective_scan(*order, delta_bias=args["delta_bias"], **options)

        outputs, pull = jax.vjp(forward, inputs)
        return outputs, pull(given)[0]

    inputs = {n: time_first(arrays[n], arrays[n].ndim) for n in names}
    (y, state), slopes = both(inputs, (time_first(arrays["do"], 3), arrays["dht"]))
    found = {"o": y, "final_state": state, **{f"d{n}": slope for n, slope in slopes.items()}}
    for key, value in found.items():
        wanted = arrays[key] if key == "final_state" else time_first(arrays[key], arrays[key].ndim)
        assert relative_error(value, wanted) <= (1 if impl == "reference" else 5) * tolerances[key], key


@pytest.mark.parametrize("name", ["grouped", "documents", "segments"])
def test_forms_agree_in_float64(name):
    """Reference against numpy, chunked against the reference: outputs, states and all gradients."""
    with jax.enable_x64(True):
        p, options = problem(SMALL[name])
        p = wide(p)
        given, numpy = cotangents(p), expected(p, **options)
        outputs, slopes = gradients(p, given, impl="reference", **options)
        for value, want in zip(outputs, numpy, strict=True):
            assert value.dtype == jnp.float64
            assert relative_error(value, want) < 1e-12
        found = gradients(p, given, impl="chunked", chunk_size=16, **options)
        for value, want in zip(jax.tree.leaves(found), jax.tree.leaves((outputs, slopes)), strict=True):
            assert value.dtype == want.dtype
            assert relative_error(value, want) < 1e-11


def test_float32_is_near_float64():
    p, options = problem(SMALL["segments"])
    given = cotangents(p)
    with jax.enable_x64(True):
        exact = gradients(wide(p), wide(given), impl="reference", **options)
        exact = jax.tree.map(np.asarray, exact)
    found = gradients(p, given, impl="chunked", chunk_size=16, **options)
    for value, want in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert relative_error(value, want) < 1e-5
    ids = np.asarray(options["segment_ids"][0])
    empty = [s for s in range(5) if not (ids == s + 1).any()]
    assert empty
    np.testing.assert_array_equal(found[0][1][0, empty], p.state[0, empty])


def test_the_accelerator_form_is_the_same(monkeypatch):
    """What a GPU or TPU without a kernel runs, run here."""
    p, options = problem(SMALL["documents"])
    given = cotangents(p)
    wanted = gradients(p, given, impl="chunked", chunk_size=16, **options)
    monkeypatch.setattr(chunked, "_stepwise", chunked._parallel)
    found = quick(lambda p, given: jax.vjp(lambda p: call(p, impl="chunked", chunk_size=16, **options), p)[1](given))(
        p, given
    )[0]
    for value, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted[1]), strict=True):
        assert relative_error(value, want) < 5e-6


def test_split_equals_whole():
    p, options = problem(SMALL["gated"])
    whole, last = run(p, **options)
    cut = lambda p, part: p._replace(**{n: getattr(p, n)[:, part] for n in ("x", "dt", "B", "C", "z")})  # noqa: E731
    for t in (1, 40):
        first, state = run(cut(p, slice(None, t)), **options)
        second, state = run(cut(p, slice(t, None))._replace(state=state), **options)
        assert relative_error(jnp.concatenate([first, second], axis=1), whole) < 1e-6
        assert relative_error(state, last) < 1e-6


def test_padding_is_inert_even_if_it_is_not_a_number():
    p, options = problem(SMALL["documents"])
    names = ("x", "dt", "B", "C", "z")
    run_it = functools.partial(gradients, softplus=True, chunk_size=16)
    given = cotangents(p)
    inputs, ids, kept = insert_padding(
        [*(getattr(p, n) for n in names), given[0]], options["segment_ids"], [0, 3, 3, 20, 61]
    )
    for leaf in inputs:
        leaf[:, np.setdiff1d(np.arange(ids.shape[1]), kept)] = np.nan
    outputs, slopes = run_it(p, given, segment_ids=options["segment_ids"])
    padded = p._replace(**dict(zip(names, inputs)))
    spread, spread_slopes = run_it(padded, (inputs[5], given[1]), segment_ids=jnp.asarray(ids))
    assert relative_error(spread[0][:, kept], outputs[0]) < 2e-6
    assert relative_error(spread[1], outputs[1]) < 2e-6
    assert not np.asarray(spread[0])[ids == 0].any()
    for n in names:
        assert not np.asarray(getattr(spread_slopes, n))[ids == 0].any(), n
        assert relative_error(getattr(spread_slopes, n)[:, kept], getattr(slopes, n)) < 1e-5, n
    for n in ("A", "D", "delta_bias", "state"):
        assert relative_error(getattr(spread_slopes, n), getattr(slopes, n)) < 1e-5, n


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("num_segments", [None, 3])
def test_no_tokens_and_no_real_tokens_keep_the_state(impl, num_segments):
    p, _ = problem(SMALL["plain"])
    rng = np.random.default_rng(3)
    state = rng.standard_normal((2, *([num_segments] if num_segments else []), 12, 4)).astype(np.float32)
    for length in (0, 5):
        few = p._replace(**{n: getattr(p, n)[:, :length] for n in ("x", "dt", "B", "C")}, state=state)
        ids = np.zeros((2, length), np.int32)
        y, after = run(few, softplus=True, segment_ids=ids, num_segments=num_segments, impl=impl)
        assert not np.asarray(y).any()
        np.testing.assert_array_equal(after, state)


def test_steps_of_zero_and_of_great_size():
    """A step of 0 keeps the state, a great one forgets it; states next to them keep their digits."""
    p, _ = problem(SMALL["plain"])
    sizes = np.array([0.0, 1e-8, 0.01, 1.0, 30.0, 1e4], np.float32)
    dt = np.random.default_rng(0).choice(sizes, p.dt.shape)
    p = p._replace(dt=dt, delta_bias=None)
    (y, _), slopes = gradients(p, cotangents(p), chunk_size=16)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    with jax.enable_x64(True):
        exact = np.asarray(run(wide(p), impl="reference")[0])
    for t in range(exact.shape[1]):
        assert relative_error(y[:, t], exact[:, t]) < 4e-6
    still = p._replace(dt=np.zeros_like(dt))
    np.testing.assert_array_equal(run(still, chunk_size=16)[1], p.state)


def test_bfloat16_keeps_its_dtype_and_a_float32_state():
    p, options = problem(SMALL["gated"], jnp.bfloat16)
    given = cotangents(p)
    (y, state), slopes = gradients(p, given, **options)
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32 and slopes.x.dtype == slopes.B.dtype == jnp.bfloat16
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (p, given))
    exact, last = run(high[0], **options)
    assert relative_error(state, last) < 1e-6
    assert relative_error(y.astype(jnp.float32), exact) < 2.0**-8


def test_constant_parameters_make_a_convolution():
    """With constant dt, B and C the layer is linear and time-invariant: its kernel is ``sum_n C exp(dt A)^k dt B``."""
    rng = np.random.default_rng(0)
    T, D, N = 40, 3, 4
    x, dt, B, C = rng.standard_normal((1, T, D)), rng.uniform(0.01, 0.5, D), *rng.standard_normal((2, N))
    A = -rng.uniform(0.5, 3, (D, N))
    kernel = np.einsum("n,kdn,dn->kd", C, np.exp(np.arange(T)[:, None, None] * dt[:, None] * A), dt[:, None] * B)
    want = np.stack([np.convolve(x[0, :, d], kernel[:, d])[:T] for d in range(D)], axis=1)
    rows = lambda row: np.broadcast_to(row, (1, T, row.size)).astype(np.float32)  # noqa: E731
    p = Problem(*(leaf.astype(np.float32) for leaf in (x, rows(dt), A)), rows(B), rows(C))
    assert relative_error(run(p)[0][0], want) < 2e-6


def test_tied_to_one_rate_per_head_it_is_mamba_2():
    """A shared by the states of a head, and one step size per head: linear attention with a scalar decay."""
    from seqmodels.ops import linear_attention

    rng = np.random.default_rng(0)
    B, T, H, P, N = 2, 33, 2, 3, 4
    x, b, c = (rng.standard_normal((B, T, n)).astype(np.float32) for n in (H * P, N, N))
    dt, A = rng.uniform(0.01, 1, (B, T, H)).astype(np.float32), -rng.uniform(0.5, 2, H).astype(np.float32)
    tied = np.repeat(A, P)[:, None] * np.ones((1, N), np.float32)
    y, state = run(Problem(x, np.repeat(dt, P, axis=2), tied, b, c))
    values = x.reshape(B, T, H, P) * dt[..., None]
    out, memory = linear_attention(c[:, :, None], b[:, :, None], values, dt * A, scale=1.0)
    assert relative_error(y, out.reshape(B, T, -1)) < 2e-6
    assert relative_error(state, jnp.swapaxes(memory, -1, -2).reshape(B, -1, N)) < 2e-6


@pytest.mark.slow
def test_drift_over_65536_tokens():
    p, options = problem(next(case for case in CASES if case.name == "cpu_long"))
    cut = {n: getattr(p, n)[..., :4] for n in ("x", "dt", "z", "D", "delta_bias")}
    p = p._replace(**cut, A=p.A[:4] * 1e-3, state=p.state[:, :4])  # slow fading: errors have time to add up
    with jax.enable_x64(True):
        exact = np.asarray(run(wide(p), impl="reference", **options)[0])
    error = relative_error(run(p, impl="chunked", **options)[0], exact)
    assert error < 2.0**-24 * 65_536**0.5, error


def test_memory_of_the_gradient():
    """Inputs, their gradients and one state per chunk: far from the T*D*N that all states would take."""
    D, N = 64, 16

    def temporaries(T):
        of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        p = Problem(of(1, T, D), of(1, T, D), of(D, N), of(1, T, N), of(1, T, N))
        loss = lambda p: jnp.sum(call(p, softplus=True, impl="chunked")[0] ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(p).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (T * D * 4)

    assert temporaries(16_384) < 8
    assert temporaries(16_384) < 1.1 * temporaries(4_096)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 9),
    D=st.sampled_from([1, 4]),
    N=st.integers(1, 3),
    G=st.sampled_from([None, 1]),
    num_segments=st.sampled_from([None, 1, 3, 20]),
    chunk_size=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_any_shape(T, D, N, G, num_segments, chunk_size, seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    rows = (N,) if G is None else (G, N)
    p = Problem(draw(2, T, D), draw(2, T, D), -np.exp(draw(D, N)), draw(2, T, *rows), draw(2, T, *rows), draw(D))
    lead = (2,) if num_segments is None else (2, num_segments)
    p = p._replace(delta_bias=draw(D), state=draw(*lead, D, N))
    ids = rng.integers(0, (num_segments or 3) + 1, (2, T)).astype(np.int32)
    options = {"segment_ids": ids, "num_segments": num_segments}
    y, last = run(p, softplus=True, chunk_size=chunk_size, **options)
    want, want_last = expected(p, **options)
    np.testing.assert_allclose(y, np.zeros(p.x.shape) if want is None else want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(last, want_last, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((2, 5))}, r"x has shape \(2, 5\), expected \[B,T,D\]"),
        ({"dt": jnp.ones((2, 5, 3))}, "dt has shape"),
        ({"A": jnp.ones((3, 2))}, "A has shape"),
        ({"C": jnp.ones((2, 5, 1, 2))}, "C has shape"),
        ({"B": jnp.ones((2, 5, 3, 2)), "C": jnp.ones((2, 5, 3, 2))}, "channels of x=4 is not a multiple of groups"),
        ({"z": jnp.ones((2, 5, 4), int)}, "z has dtype int32"),
        ({"delta_bias": jnp.ones(3)}, "delta_bias has shape"),
        ({"state": jnp.ones((2, 4, 3))}, "state has shape"),
        ({"segment_ids": jnp.ones((2, 4), jnp.int32)}, "segment_ids has shape"),
        ({"num_segments": 2}, "num_segments=2 without segment_ids"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"impl": "chunky"}, "did you mean 'chunked'"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    columns, rows = jnp.ones((2, 5, 4)), jnp.ones((2, 5, 2))
    arguments = {"x": columns, "dt": columns, "A": jnp.ones((4, 2)), "B": rows, "C": rows} | change
    order = [arguments.pop(name) for name in ("x", "dt", "A", "B", "C")]
    with pytest.raises(ValueError, match=message) as error:
        selective_scan(*order, **arguments)
    assert "\n" not in str(error.value)
