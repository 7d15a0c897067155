"""Hyena written out in numpy, its filter, and the buffer that is its state."""

import jax
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.mixers.hyena import HyenaConfig, ImplicitFilter
from seqmodels.sharding import unbox
from tests.shared import relative_error

D, T = 6, 11
CFG = HyenaConfig(max_length=16, filter_width=5, features=5, sine_frequency=3.0)
X = jax.random.normal(jax.random.key(0), (1, T, D))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    initial = unbox(jax.jit(CFG.make(D).init)(jax.random.key(1), X))["params"]
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.3 * rng.standard_normal(leaf.shape).astype("f"), initial)


@pytest.fixture(scope="module")
def run():
    return jax.jit(lambda params, x, state=None: CFG.make(D).apply({"params": params}, x, state))


def taps(p):
    t, L = np.linspace(0, 1, 16), 16
    phase = 2 * np.pi * np.arange(L)[:, None] / L * np.array([1e-4, 1.0])
    h = np.concatenate([t[:, None], np.cos(phase), -np.sin(phase)], axis=1)
    for name in ("layer_0", "layer_1", "layer_2"):
        h = np.sin(p["frequency"] * (h @ p[name]["kernel"] + p[name]["bias"]))
    h = h @ p["taps"]["kernel"]
    for channel in range(D):
        rate = np.log(100) * (1 / 1.5 + channel / (D - 1) * (1 / 0.3 - 1 / 1.5))
        h[:, channel] *= np.exp(-rate * t)
    h[0] += p["skip"]
    return h


def test_the_layer(params, run):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(X[0], np.float64) @ p["in_proj"]["kernel"] + p["in_proj"]["bias"]
    padded = np.pad(x, ((2, 0), (0, 0)))
    x = sum(padded[i : i + T] * p["short_filter"]["kernel"][i] for i in range(3)) + p["short_filter"]["bias"]
    outer, inner, v = np.split(x, 3, axis=-1)
    z, h = inner * v, taps(p["filter"])
    mixed = np.stack([sum(h[j] * z[t - j] for j in range(t + 1)) for t in range(T)])
    expected = (outer * mixed) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    assert relative_error(run(params, X)[0][0], expected) <= 1e-5


def test_the_initial_window():
    """The slowest and the quickest channel reach `target` at their shares of the length."""
    cfg = HyenaConfig(max_length=101, filter_width=4, features=3)
    module = ImplicitFilter(cfg, 2)
    params = unbox(jax.jit(module.init)(jax.random.key(0)))
    flat = HyenaConfig(max_length=101, filter_width=4, features=3, target=1.0 - 1e-6)
    ratio = np.asarray(jax.jit(module.apply)(params))[1:] / np.asarray(ImplicitFilter(flat, 2).apply(params))[1:]
    assert ratio[29, 1] == pytest.approx(1e-2, rel=1e-2), "30 of 100"
    assert ratio[99, 0] == pytest.approx(1e-2 ** (1 / 1.5), rel=1e-2)


def test_a_short_buffer_forgets_only_what_it_cannot_hold(params, run):
    mixer = CFG.make(D)
    assert mixer.init_state(1).inputs.shape == (1, 15, D)
    assert mixer.init_state(1, 4).inputs.shape == (1, 3, D)
    whole, _, _ = run(params, X)
    enough, _, _ = run(params, X, mixer.init_state(1, T))
    assert relative_error(enough, whole) <= 1e-5
    short, _, _ = run(params, X, mixer.init_state(1, 4))
    assert relative_error(short[:, :4], whole[:, :4]) <= 1e-5 and relative_error(short, whole) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"features": 4},
        {"filter_layers": -1},
        {"filter_layers": 1.5},
        {"max_length": 0},
        {"max_length": 2.5},
        {"target": 1.5},
    ],
)
def test_bad_configs_are_refused_in_one_line(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}=") as caught:
        HyenaConfig(**options)
    assert "\n" not in str(caught.value)
