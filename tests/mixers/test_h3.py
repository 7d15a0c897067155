"""H3 written out in numpy, its initial taps, and refusals."""

import jax
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.mixers.h3 import H3Config
from seqmodels.sharding import unbox
from tests.shared import relative_error

D, T, K, N = 6, 9, 2, 4
CFG = H3Config(state_size=N, head_dim=K, dt_min=0.1, dt_max=1.0)
X = jax.random.normal(jax.random.key(0), (1, T, D))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, unbox(jax.jit(CFG.make(D).init)(jax.random.key(1), X))["params"])


def test_the_layer(params):
    p = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    q, k, v = (np.asarray(X[0], np.float64) @ p[f"{n}_proj"]["kernel"] + p[f"{n}_proj"]["bias"] for n in "qkv")
    shifted = p["shift_skip"] * k
    for t in range(T):
        shifted[t] += sum(p["shift"][i] * k[t - i] for i in range(min(t + 1, N)))
    o = np.zeros((T, D))
    for h in range(D // K):
        at = slice(h * K, (h + 1) * K)
        A = -np.exp(p["log_A_real"][h]) + 1j * p["A_imag"][h]
        dt = np.exp(p["log_dt"][h])
        B = (np.exp(dt * A) - 1) / A * (p["B"][h, :, 0] + 1j * p["B"][h, :, 1])
        C = p["C"][h, :, 0] + 1j * p["C"][h, :, 1]
        state = np.zeros((K, K, N // 2), complex)
        for t in range(T):
            product = np.outer(shifted[t, at], v[t, at])
            state = np.exp(dt * A) * state + B * product[..., None]
            o[t, at] = q[t, at] @ (2 * (state @ C).real + p["D"][h] * product)
    expected = o @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    found = jax.jit(CFG.make(D).apply)({"params": params}, X)[0][0]
    assert relative_error(found, expected) <= 1e-5


def test_the_initial_systems(params):
    np.testing.assert_allclose(params["A_imag"][1], [0, np.pi], rtol=1e-6)
    np.testing.assert_allclose(np.exp(params["log_A_real"]), 0.5, rtol=1e-6)
    assert params["shift"].shape == (N, D) and np.abs(params["shift"]).max() <= N**-0.5
    dt = np.exp(params["log_dt"])
    assert dt.shape == (D // K,) and dt.min() >= 0.1 and dt.max() <= 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: H3Config(state_size=5), "H3Config.state_size=5 is odd"),
        (lambda: H3Config(init="legz"), "H3Config.init='legz' is unknown"),  # type: ignore[arg-type]
        (lambda: H3Config(dt_min=0.2), "H3Config.dt_min=0.2 exceeds dt_max=0.1; swap them"),
        (lambda: H3Config(head_dim=4).make(6), "H3Config.head_dim=4 does not divide the model width=6"),
    ],
)
def test_bad_configs_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
