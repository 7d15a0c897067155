"""`linear_ssm`: golden vectors, brute-force documents, convolution = recurrence, isolation, memory, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.ops import hippo, linear_ssm, long_conv, ssm_kernel
from seqmodels.ops.linear_ssm.cases import CASES
from tests.ops.sequences import insert_padding, run_alone
from tests.shared import golden, relative_error

SMALL = {case.name: case for case in CASES if not case.large}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def loop(a, b, c):
    """The recurrence of one sequence in numpy: ``([x [n,D]], h [D,N]) -> (y, h)``."""

    def run(inputs, h):
        y = np.zeros_like(inputs[0])
        for t, x in enumerate(inputs[0]):
            h = (a * h if a.ndim == 2 else np.einsum("dij,dj->di", a, h)) + b * x[:, None]
            y[t] = np.sum(c * h, axis=-1).real
        return y, h

    return run


def wide(tree):
    """In double precision; call it inside ``jax.enable_x64``."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(leaf, jnp.float64)), tree)


@pytest.mark.parametrize("name", ["documents", "dense_documents"])
def test_forms_agree_in_float64(name):
    """Reference against numpy, chunked against the reference: outputs, states and all gradients."""
    with jax.enable_x64(True):
        arguments, options = SMALL[name].make(jax.random.key(0))
        arguments, state = wide((arguments, options.pop("state")))
        ids = options.pop("segment_ids", None)
        results = []
        for impl in ("reference", "chunked"):

            @quick
            def both(arguments, state, impl=impl):
                op = lambda args, state: linear_ssm(*args, state=state, segment_ids=ids, impl=impl, **options)  # noqa: E731
                out, pull = jax.vjp(op, arguments, state)
                given = [jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape) for o in out]
                return out, pull(tuple(given))

            results.append(both(arguments, state))
        run = loop(*map(np.asarray, arguments[1:]))
        ids = np.ones(arguments[0].shape[:2], np.int32) if ids is None else ids
        for value, want in zip(results[0][0], run_alone(run, [np.asarray(arguments[0])], state, ids), strict=True):
            np.testing.assert_allclose(value, want, rtol=0, atol=1e-12)
        for value, want in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(value, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["complex", "real", "dense"])
def test_convolution_is_recurrence(name):
    with jax.enable_x64(True):
        x, *system = wide(SMALL[name].make(jax.random.key(0))[0])
        y = quick(lambda *args: linear_ssm(*args, chunk_size=8)[0])(x, *system)
        convolved = quick(lambda x, *system: long_conv(x, ssm_kernel(*system, 37))[0])(x, *system)
        np.testing.assert_allclose(convolved, y, rtol=0, atol=1e-11)


@pytest.mark.shared
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_golden(method):
    arrays, _, _ = golden(f"hippo/s4d_state_{method}")
    with jax.enable_x64(True):
        a, b = hippo.discretize_diagonal(*(jnp.asarray(arrays[n]) for n in ("A", "B")), arrays["dt"][:, None], method)
        system, x = (a, b, 2 * arrays["C"]), arrays["u"].swapaxes(1, 2)
        y, state = quick(lambda x, *system: linear_ssm(x, *system, state=arrays["initial_state"]))(x, *system)
        kernel = quick(lambda *system: ssm_kernel(*system, x.shape[1]))(*system)
    for value, want in ((y, arrays["y"].swapaxes(1, 2)), (kernel, arrays["K"].T)):
        assert relative_error(value, want) < 1e-12
    assert np.max(np.abs(np.asarray(state) - arrays["final_state"])) < 1e-12


def test_float32_keeps_its_digits_far_from_the_start():
    """Slow modes at the edge of the unit disc, and modes that turn by many radians a step."""
    rng = np.random.default_rng(0)
    decay, angle = 10.0 ** rng.uniform(-5, 0, (2, 6)), rng.uniform(-400, 400, (2, 6))
    a = np.exp(-decay + 1j * angle).astype(np.complex64)
    b, c = rng.standard_normal((2, 2, 6)).astype(np.float32)
    x = rng.standard_normal((1, 1000, 2)).astype(np.float32)
    y, state = quick(linear_ssm)(x, a, b, c)
    want, last = loop(a.astype(np.complex128), b, c)([x[0].astype(np.float64)], np.zeros((2, 6), complex))
    assert relative_error(y[0], want) < 2e-5
    assert np.max(np.abs(state[0] - last)) < 2e-5 * np.max(np.abs(last))
    kernel = quick(lambda *system: ssm_kernel(*system, 1000))(a, b, c)
    exact = np.sum(a.astype(np.complex128) ** np.arange(1000)[:, None, None] * (b * c), axis=-1).real
    assert relative_error(kernel, exact) < 2e-5


def test_padding_is_inert_even_if_it_is_not_a_number():
    (x, *system), options = SMALL["documents"].make(jax.random.key(1))
    ids, state = jnp.maximum(options["segment_ids"], 1), options["state"]

    @quick
    def both(x, ids, dy):
        (y, after), pull = jax.vjp(lambda x: linear_ssm(x, *system, segment_ids=ids, state=state, chunk_size=16), x)
        return y, after, pull((dy, jnp.zeros_like(after)))[0]

    dy = np.asarray(jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape))
    y, after, dx = both(x, ids, dy)
    (padded, padded_dy), padded_ids, kept = insert_padding([x, dy], ids, [0, 0, 4, 50, 61, 61])
    padded[padded_ids == 0] = np.nan
    y2, after2, dx2 = both(padded, padded_ids, padded_dy)
    for value, want in ((y2, y), (dx2, dx)):
        np.testing.assert_allclose(value[:, kept], want, rtol=0, atol=1e-5)
        assert not np.delete(value, kept, axis=1).any()
    np.testing.assert_allclose(after2, after, rtol=0, atol=1e-5)
    _, unchanged, _ = both(padded, 0 * padded_ids, padded_dy)
    np.testing.assert_array_equal(unchanged, state)


def test_steps_equal_the_whole():
    (x, *system), options = SMALL["complex"].make(jax.random.key(1))
    run = quick(lambda x, state: linear_ssm(x, *system, state=state, chunk_size=8))
    whole, last = run(x, options["state"])
    state, parts = options["state"], []
    for cut in ((0, 0), (0, 17), *((t, t + 1) for t in range(17, 37))):
        y, state = run(x[:, slice(*cut)], state)
        parts.append(y)
    assert relative_error(jnp.concatenate(parts, axis=1), whole) < 2e-6
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-5)


def test_nothing_at_all_reaches_another_document():
    rng = np.random.default_rng(0)
    (_, *system), _ = SMALL["complex"].make(jax.random.key(1))
    ids = np.repeat([[1, 2, 3]], [20, 25, 19], axis=1).astype(np.int32)
    x = rng.standard_normal((1, 64, 3)).astype(np.float32)
    x[ids == 2] *= 1e20
    run = quick(lambda x, ids: linear_ssm(x, *system, segment_ids=ids))
    y, state = run(x, ids)
    for name in (1, 3):
        at = ids == name
        alone, last = run(x, np.where(at, 1, 0).astype(np.int32))
        assert relative_error(y[at], alone[at]) < 2e-6
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-5)


def test_memory_of_65536_tokens():
    """A gradient holds a few copies of the input, and nothing N times its size."""
    T, D, N = 65_536, 16, 32
    x, a = jax.ShapeDtypeStruct((1, T, D), jnp.float32), jax.ShapeDtypeStruct((D, N), jnp.complex64)
    ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
    loss = lambda x, a, b, c, ids: jnp.sum(linear_ssm(x, a, b, c, segment_ids=ids)[0] ** 2)  # noqa: E731
    compiled = quick(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(x, a, a, a, ids).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * 4 * T * D


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": jnp.ones((3, 5))}, r"a has shape \(3, 5\), expected \[D,N\] with D=3, N=4"),
        ({"a": jnp.ones((3, 4, 5))}, r"a has shape \(3, 4, 5\), expected \[D,N,N\]"),
        ({"a": jnp.ones((3, 4, 4), jnp.complex64)}, r"a has dtype complex64, expected floating point"),
        ({"b": jnp.ones((3, 4), jnp.int32)}, r"b has dtype int32, expected floating point or complex"),
        ({"x": jnp.ones((2, 5, 4))}, r"b has shape \(3, 4\), expected \[D,N\] with D=4"),
        ({"state": jnp.ones((2, 3, 5))}, r"state has shape \(2, 3, 5\), expected \[B,D,N\]"),
        ({"state": jnp.ones((2, 3, 4), jnp.complex64)}, r"state has dtype complex64 but a and b are real"),
        ({"chunk_size": 24}, r"chunk_size=24 is not a power of two"),
    ],
)
def test_errors_say_what_to_do(change, message):
    arguments = {"x": jnp.ones((2, 5, 3)), "a": jnp.ones((3, 4)), "b": jnp.ones((3, 4)), "c": jnp.ones((3, 4))} | change
    with pytest.raises(ValueError, match=message) as caught:
        linear_ssm(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [None, jnp.zeros((0, 5), jnp.int32)], ids=["plain", "ids"])
def test_an_empty_batch(ids):
    system = [jnp.full((2, 3), 0.5)] * 3
    y, state = linear_ssm(jnp.zeros((0, 5, 2)), *system, segment_ids=ids)
    assert y.shape == (0, 5, 2) and state.shape == (0, 2, 3)
