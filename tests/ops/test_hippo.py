"""HiPPO matrices against golden files, and what their states remember."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hippo_figure
from seqmodels.ops import hippo
from tests.shared import golden

MEASURES = (
    "legs", "legt", "lagt", "tlagt", "glagt", "lmu", "legsd", "fourier", "fourier2", "fourier_decay", "fourier_diag",
)  # fmt: skip
SIZES = (4, 8, 64)
METHODS = ("zoh", "bilinear", "forward", "backward")


def close(actual, expected, tolerance=1e-12):
    scale = max(np.max(np.abs(expected)), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def pairs(half):
    return np.concatenate([half, half.conj()], axis=-1)


@pytest.mark.shared
@pytest.mark.parametrize("measure", MEASURES)
def test_matrices_match_golden(measure):
    arrays, attrs, _ = golden(f"hippo/hippo_{measure}")
    parameters = {name: attrs[name] for name in ("alpha", "beta") if name in attrs}
    unseen = set(arrays)
    for n in SIZES:
        a, b = hippo.transition(measure, n, **parameters)
        found = {"A": a, "B": b}
        if f"P_{n}" in arrays:
            found["P"] = hippo.rank_correction(measure, n)
        if f"nplr_W_{n}" in arrays:
            w, p_eigen, b_eigen, _ = hippo.nplr(measure, n)
            found |= {"nplr_W": w, "nplr_absB2": abs(b_eigen) ** 2, "nplr_absP2": abs(p_eigen) ** 2}
            found["nplr_conjP_B"] = p_eigen.conj() * b_eigen
        for method in ("zoh", "bilinear"):
            if f"dA_{method}_{n}" in arrays:
                found[f"dA_{method}"], found[f"dB_{method}"] = hippo.discretize(a, b, attrs["dt"], method)
        for name, value in found.items():
            if f"{name}_{n}" in arrays:
                close(value, arrays[f"{name}_{n}"])
                unseen.discard(f"{name}_{n}")
    assert not unseen, f"not compared: {sorted(unseen)}"


@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "lmu"])
@pytest.mark.parametrize("n", [2, 32])
def test_nplr_gives_back_the_matrices(measure, n):
    a, b = hippo.transition(measure, n)
    w, p, b_eigen, v = (pairs(x) for x in hippo.nplr(measure, n))
    close(v @ v.conj().T, np.eye(n))
    close(v @ (np.diag(w) - p.T @ p.conj()) @ v.conj().T, a)
    close(v @ b_eigen, b)
    close(v @ p.T, hippo.rank_correction(measure, n).T)
    assert np.all(np.diff(w[: n // 2].imag) >= 0) and np.all(w[: n // 2].imag <= 0)


@pytest.mark.parametrize(
    "measure, weight",
    [
        (hippo.Measure("legs"), lambda s: np.exp(-s)),
        (hippo.Measure("lagt", beta=0.7), lambda s: 0.49 * np.ones_like(s)),
        (hippo.Measure("tlagt", beta=0.5), lambda s: 0.25 * np.exp(-0.5 * s)),
        (hippo.Measure("glagt"), lambda s: 0.01 * np.exp(-0.01 * s)),
        (hippo.Measure("fourier_diag"), lambda s: np.exp(-s) / (1 - np.exp(-0.5))),
    ],
    ids=lambda value: getattr(value, "name", "weight"),
)
def test_kernel_is_weight_times_basis(measure, weight):
    n, lags = 12, np.linspace(0.05, 0.95, 7)
    a, b = hippo.transition(measure, n)
    kernel = hippo.discretize(a, b, lags)[0] @ b
    expected = weight(lags)[:, None] * hippo.basis(measure, n, lags)
    close(kernel, expected, 1e-11)


def test_kernel_of_generalised_laguerre_with_a_singular_weight():
    measure, n = hippo.Measure("glagt", alpha=0.4, beta=0.3), 6
    a, b = hippo.transition(measure, n)
    lags = np.linspace(0.1, 5, 9)
    kernel = hippo.discretize(a, b, lags)[0] @ b
    ratio = kernel / hippo.basis(measure, n, lags)
    weight = ratio[:, :1]  # the same for every degree, of the form c s^-alpha e^(-beta s)
    close(ratio, np.broadcast_to(weight, ratio.shape), 1e-10)
    constant = weight[:, 0] * lags**0.4 * np.exp(0.3 * lags)
    close(constant, np.full(9, constant[0]), 1e-11)


def test_lmu_is_legt_rescaled():
    n = 8
    (a, b), (a_lmu, b_lmu) = hippo.transition("legt", n), hippo.transition("lmu", n, theta=2.0)
    scale = (-1.0) ** np.arange(n) * np.sqrt(2 * np.arange(n) + 1)
    close(scale[:, None] * a / scale, a_lmu)
    close(scale * b, b_lmu)


def test_legs_eigenvalues_and_diagonal_forms():
    a, _ = hippo.transition("legs", 16)
    close(np.diag(a), -np.arange(1.0, 17))
    inverse, lin = hippo.diagonal("inv", 64)[0], hippo.diagonal("lin", 8)[0]
    half_digit = [0.05, 0.05, 0.0005]  # of the published decimals
    assert np.all(np.abs(inverse.imag[[0, 1, -1]] - [1283.4, 414.2, 0.323]) < half_digit)
    close(lin, -0.5 + 1j * np.pi * np.arange(4))
    legs = hippo.diagonal("legs", 64)[0]
    assert np.all(np.abs(legs.imag[[0, 1, -1]] - [-1303.3, -433.0, -0.264]) < half_digit)
    close(np.sort(hippo.diagonal("fout", 8)[0].imag), -np.pi * np.arange(4)[::-1])
    # On a coarse grid of times the first kernel misses exp(-t) by the published errors.
    for n, published in ((16, 0.70), (64, 0.67)):
        w, _, b_eigen, v = hippo.nplr("legs", n)
        times = 0.1 * np.arange(80)
        first = np.real(np.exp(times[:, None] * w) @ (v[0] * b_eigen))  # twice the real part of half of B
        assert abs(np.max(np.abs(first - np.exp(-times))) - published) < 0.005
    # Without its low-rank part and with half of B, LegS is the measure legsd.
    a, b = hippo.transition("legsd", 16)
    w, b_eigen = hippo.diagonal("legs", 16)
    kernel = hippo.discretize(a, b, 0.3)[0] @ b
    close(np.linalg.norm(kernel) ** 2, np.sum(np.abs(0.5 * np.exp(0.3 * w) * b_eigen) ** 2) * 2)


@pytest.mark.parametrize("method", METHODS)
def test_dense_and_diagonal_discretisations_agree(method):
    rng = np.random.default_rng(0)
    a, b = -rng.uniform(0, 2, 5), rng.normal(size=5)
    a[0] = 0.0  # an integrator
    dt = np.array([0.01, 0.2, 0.9])
    a_bar, b_bar = hippo.discretize(np.diag(a), b, dt, method)
    diagonal, inputs = hippo.discretize_diagonal(a, b, dt[:, None], method)
    close(np.einsum("tii->ti", a_bar), diagonal)
    close(b_bar, inputs)
    assert isinstance(diagonal, np.ndarray)
    share = {"forward": 0.0, "bilinear": 0.5, "backward": 1.0}.get(method)
    if share is not None:
        for value, expected in zip(hippo.discretize(np.diag(a), b, dt, "generalized", alpha=share), (a_bar, b_bar)):
            close(value, expected)


def test_methods_agree_to_their_order():
    a, b = hippo.transition("legt", 4)
    exact = hippo.discretize(a, b, 1e-3)
    for method, order in (("bilinear", 3), ("forward", 2), ("backward", 2)):
        for value, expected in zip(hippo.discretize(a, b, 1e-3, method), exact):
            assert 0 < np.max(np.abs(value - expected)) < 40 * 1e-3**order * 10


def test_diagonal_discretisation_in_jax():
    a = jnp.array([0.0, -1e-6, -0.5], jnp.complex64) + 1j * jnp.array([0.0, 0.0, 30.0])

    def total(dt):
        a_bar, b_bar = hippo.discretize_diagonal(a, 1.0, dt)
        return jnp.sum(jnp.abs(b_bar)) + jnp.sum(a_bar.real)

    value, slope = jax.jit(jax.value_and_grad(total))(0.01)
    a64 = np.asarray(a, np.complex128)
    a_bar, b_bar = hippo.discretize_diagonal(a64, 1.0, 0.01)
    np.testing.assert_allclose(value, np.sum(np.abs(b_bar)) + np.sum(a_bar.real), rtol=1e-6)
    above, below = (hippo.discretize_diagonal(a64, 1.0, dt) for dt in (0.01 + 1e-6, 0.01 - 1e-6))
    expected = sum(sign * (np.sum(np.abs(y)) + np.sum(x.real)) for sign, (x, y) in ((1, above), (-1, below))) / 2e-6
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e-9, 1e-5, 2e-4, 5e-3, 0.07, 0.072, 1.0, 1e7])
def test_eigenvalues_of_any_size_have_a_slope(size):
    """Of ``(e^a - 1) / a``: one half at 0, where the square of a has no place in float32, too."""
    a = jnp.asarray(-size + 1j * size, jnp.complex64)
    slope = jax.grad(lambda a: jnp.real(hippo.discretize_diagonal(a, 1.0, 1.0)[1]))(a)
    z = complex(-size, size)
    series = sum((k + 1) * z**k / math.factorial(k + 2) for k in range(25)) if size <= 1 else None
    expected = (z * np.exp(z) - np.exp(z) + 1) / z**2 if series is None else series
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_irregular_steps_and_carried_state():
    rng = np.random.default_rng(1)
    held, signal = rng.integers(1, 4, 12), rng.normal(size=(2, 12))
    irregular = hippo.memory("legs", 8, signal, 0.05 * held)
    regular = hippo.memory("legs", 8, np.repeat(signal, held, axis=-1), 0.05)
    close(irregular, regular[:, np.cumsum(held) - 1])
    resumed = hippo.memory("legs", 8, signal[:, 5:], 0.05 * held[5:], initial_state=irregular[:, 4])
    close(resumed, irregular[:, 5:])
    close(hippo.sample_lags(3, np.array([1.0, 2.0, 4.0])), [6.5, 5.0, 2.0])


def reconstruction_error(measure, n):
    """Relative error of decoding the last window of a smooth signal, away from the very newest samples."""
    measure = hippo.Measure(measure)
    window = measure.window if np.isfinite(measure.window) else 4.0
    dt = window / 500
    # Wrapped measures superpose all past periods: they can hold a signal that repeats itself, once it has done so.
    wrapped = measure.name in ("fourier_decay", "fourier_diag")
    length, cycles = (8000, (2, 6)) if wrapped else (1500, (1.3, 2.1))
    phase = 2 * np.pi * np.arange(length) * dt / window
    signal = np.sin(cycles[0] * phase + 0.3) + 0.5 * np.cos(cycles[1] * phase)
    state = hippo.memory(measure, n, signal, dt)[-1]
    lags = hippo.sample_lags(length, dt)
    seen = (lags > 0.05 * window) & (lags < (0.95 if np.isfinite(measure.window) else 0.5) * window)
    error = hippo.reconstruct(state, measure, lags[seen]) - signal[seen]
    return np.sqrt(np.mean(error**2) / np.mean(signal[seen] ** 2))


@pytest.mark.parametrize(
    "measure, bound",
    [
        ("legs", 0.02), ("legt", 1e-4), ("lmu", 1e-4), ("fourier", 0.04), ("fourier2", 0.04), ("fourier_decay", 0.04),
        ("fourier_diag", 0.04), ("legsd", 0.1), ("tlagt", 0.02), ("lagt", 0.3), ("glagt", 0.3),
    ],
)  # fmt: skip
def test_reconstruction_improves_with_size(measure, bound):
    small, large = reconstruction_error(measure, 8), reconstruction_error(measure, 64)
    assert large < 0.5 * small
    assert large < bound


def test_scaled_legs_remembers_everything_at_any_speed():
    moments = np.arange(400) / 400
    signal = np.sin(9 * moments) + moments**2
    states = hippo.scaled_memory(16, signal)
    decoded = hippo.reconstruct(states[-1], "legs", -np.log(moments[1:] + 0.5 / 400))
    assert np.max(np.abs(decoded - signal[1:])) < 1e-2
    close(hippo.scaled_memory(16, np.repeat(signal, 2))[1::2], states, 1e-10)


def test_constants_are_remembered_exactly():
    """A constant past leaves the state at the first unit vector, which decodes to it."""
    for measure in ("legs", "lmu", "legt", "fourier", "fourier_decay"):
        state = hippo.memory(measure, 6, np.ones(400), 0.2)[-1]
        close(state, np.eye(6)[0], 1e-9)
        close(hippo.reconstruct(state, measure, np.array([0.3, 0.8])), np.ones(2), 1e-9)


@pytest.mark.parametrize("measure", ["legt", "fourier"])
def test_delay_inside_and_beyond_the_window(measure):
    """The best read-out has the delay when the window just covers it, less in a wider one, nothing in a shorter one."""
    lag = 94
    best = hippo.step_for_lag(measure, lag)
    wider, inside, beyond = (hippo.delay_error(measure, 96, lag, c * best, frequencies=512) for c in (0.5, 1, 2))
    assert inside < (1e-4 if measure == "legt" else 0.02)
    assert wider > 0.03
    assert beyond > 0.75


def test_delay_of_legs_has_no_cliff():
    errors = [hippo.delay_error("legs", 48, 48, product / 48, frequencies=512) for product in (1, 2, 4)]
    assert max(errors) < 0.6


def test_delay_error_is_what_a_fitted_read_out_finds():
    rng = np.random.default_rng(2)
    spectrum = np.fft.rfft(rng.normal(size=8192))
    spectrum[len(spectrum) // 2 :] = 0
    signal = np.fft.irfft(spectrum)
    signal /= signal.std()
    states = hippo.memory("legt", 12, signal, 0.1, method="bilinear")[1000:]
    wanted = signal[1000 - 20 : -20]
    readout = np.linalg.lstsq(states, wanted, rcond=None)[0]
    fitted = np.mean((states @ readout - wanted) ** 2)
    assert 0.05 < fitted < 0.9
    np.testing.assert_allclose(hippo.delay_error("legt", 12, 20, 0.1, frequencies=256), fitted, rtol=0.05)


def test_timescales():
    assert [hippo.timescale(m) for m in ("legs", "legt", "fourier", "fourier2", "lmu")] == [1, 1, 1, 0.5, 0.5]
    assert hippo.step_for_lag("fout", 250) == 2 / 250
    assert hippo.step_for_lag("legs", 100) == 0.01
    assert hippo.step_for_lag(hippo.Measure("lmu", theta=5.0), 10) == 0.5
    for measure in ("legs", "glagt", "fourier_decay"):  # the mean age of a constant kernel's weight, by its definition
        parameters = hippo.Measure(measure, beta=0.5) if measure == "glagt" else measure
        dt = 0.01
        age = (np.arange(8000) + 0.5) * dt
        a_bar, b_bar = hippo.discretize(*hippo.transition(parameters, 32), dt)
        kernel, state = np.empty(8000), b_bar
        for t in range(8000):
            kernel[t], state = state[0], a_bar @ state
        if measure == "glagt":  # kernel 0 is the weight times a function; undo the function
            kernel = kernel / hippo.basis(parameters, 32, age)[:, 0]
        np.testing.assert_allclose(np.sum(kernel * age) / np.sum(kernel), hippo.timescale(parameters), rtol=1e-2)
    steps = hippo.log_uniform_steps(jax.random.key(0), (500,), shortest=4, longest=64)
    assert steps.dtype == jnp.float32 and 1 / 64 <= steps.min() < 0.02 and 0.2 < steps.max() <= 0.25 + 1e-6
    np.testing.assert_allclose(jnp.median(steps), 1 / 16, rtol=0.2)


def test_matrices_of_any_basis():
    n = 12

    def legt(lags):
        return hippo.basis("legt", n, np.minimum(lags, 2.0))

    for value, expected in zip(
        hippo.transition_of_basis(lambda s: 0.5 * legt(s), legt, 2.0, nodes=32), hippo.transition("legt", n)
    ):
        close(value, expected, 1e-10)
    with pytest.raises(ValueError, match=r"biorthogonality by 1, expected"):
        hippo.transition_of_basis(legt, legt, 2.0, nodes=32)
    # A family of its own: the same polynomials under a weight that falls over the window.
    scale = np.exp(-0.25 * np.arange(2))

    def tilted(sign):
        return lambda s: scale[0] * legt(s) * np.exp(sign * 0.5 * s)[:, None]

    a, b = hippo.transition_of_basis(lambda s: 0.5 * tilted(-1)(s), tilted(1), 2.0, nodes=48)
    dt, signal = 0.005, np.sin(0.013 * np.arange(1200))
    a_bar, b_bar = hippo.discretize(a, b, dt)
    state = np.zeros(n)
    for sample in signal:
        state = a_bar @ state + b_bar * sample
    lags = hippo.sample_lags(1200, dt)
    seen = lags < 1.9
    np.testing.assert_allclose(tilted(1)(lags[seen]) @ state, signal[seen], atol=0.02)


def test_figure_is_drawn(tmp_path):
    hippo_figure.draw(tmp_path / "new" / "figure.png", n=8, length=40)
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: hippo.transition("legz", 4), r"measure='legz' is unknown.*did you mean 'leg.'"),
        (lambda: hippo.transition("fourrier", 4), r"did you mean 'fourier'"),
        (lambda: hippo.transition("legs", 4, beta=0.5), r"beta=0.5 does not belong to measure 'legs'"),
        (lambda: hippo.transition("glagt", 4, alpha=1.5), r"alpha=1.5, expected a number between -1 and 1"),
        (lambda: hippo.transition("tlagt", 4, beta=-1.0), r"beta=-1.0, expected a positive number"),
        (lambda: hippo.transition(hippo.Measure("lagt"), 4, beta=2.0), r"put them into the Measure"),
        (lambda: hippo.transition("legs", 0), r"n=0 is not a positive int"),
        (lambda: hippo.transition("fout", 5), r"n=5 is odd, expected an even state size"),
        (lambda: hippo.nplr("legs", 7), r"n=7 is odd"),
        (lambda: hippo.nplr("lmu", 8), r"no normal-plus-low-rank form; use 'legt'"),
        (lambda: hippo.rank_correction(hippo.Measure("glagt", alpha=0.5), 8), r"use alpha=0"),
        (lambda: hippo.diagonal("linn", 8), r"form='linn' is unknown.*did you mean 'lin'"),
        (lambda: hippo.discretize(np.eye(2), np.ones(2), 0.1, "bilinar"), r"did you mean 'bilinear'"),
        (lambda: hippo.discretize(np.eye(2), np.ones(3), 0.1), r"a has shape \(2, 2\) and b \(3,\)"),
        (lambda: hippo.discretize(np.eye(2), np.ones(2), -0.1), r"dt holds -0.1, expected positive"),
        (lambda: hippo.discretize(np.eye(2), np.ones(2), 0.1, "generalized"), r"alpha=None, expected a number"),
        (lambda: hippo.discretize_diagonal(np.ones(2), 1.0, 0.1, alpha=0.5), r"use method='generalized'"),
        (lambda: hippo.memory("legs", 4, np.ones(5), np.ones(4)), r"dt has shape \(4,\), expected a number or \[T\]"),
        (lambda: hippo.scaled_memory(4, np.ones((2, 0))), r"length of signal=0"),
        (lambda: hippo.basis("legs", 4, [-1.0]), r"lags holds -1.0, expected times before now"),
        (lambda: hippo.basis("legs", 4, 1.0), r"lags has shape \(\), expected a vector"),
        (lambda: hippo.memory("legs", 4, 1.0, 0.1), r"signal has shape \(\), expected"),
        (lambda: hippo.step_for_lag("lagt", 10), r"weighs all lags alike"),
        (lambda: hippo.step_for_lag("legs", 0), r"lag=0, expected a positive number"),
        (lambda: hippo.delay_error("legs", 4, 5000, 0.1), r"expected at least 5000 to resolve lag=5000"),
        (lambda: hippo.log_uniform_steps(jax.random.key(0), (2,), shortest=9, longest=3), r"shortest=9, longest=3"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
