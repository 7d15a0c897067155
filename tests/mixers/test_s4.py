"""S4, S4D and S5: golden kernels, all modes equal, a change of the sampling rate, initial values, refusals."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.errors import UserError
from seqmodels.mixers.s4 import S4Config
from seqmodels.mixers.s4d import S4DConfig
from seqmodels.mixers.s5 import S5Config
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.ops import hippo
from seqmodels.sharding import unbox
from tests.shared import golden, relative_error

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CONFIGS = {"S4": S4Config.tiny(), "S4D": S4DConfig.tiny(), "S5": S5Config.tiny()}


def initial(cfg, dim):
    mixer = cfg.make(dim)
    params = jax.jit(lambda key: unbox(mixer.init(key, jnp.zeros((1, 2, dim)))))(jax.random.key(0))
    return mixer, jax.tree.map(np.asarray, params)


@pytest.mark.shared
def test_golden_s4d():
    """Kernel and output of the layer's core, and the gradients of all parameters."""
    arrays, _, tolerances = golden("hippo/s4d")
    names = ("log_dt", "log_A_real", "A_imag", "C", "D", "u")

    @quick
    def both(inputs, given):
        def forward(p):
            A = -jnp.exp(p["log_A_real"]) + 1j * p["A_imag"]
            a, b = hippo.discretize_diagonal(A, 1.0, jnp.exp(p["log_dt"])[:, None])
            system, x = (a, b, 2 * jax.lax.complex(p["C"][..., 0], p["C"][..., 1])), p["u"].swapaxes(1, 2)
            y = ops.linear_ssm(x, *system)[0] + p["D"] * x
            return ops.ssm_kernel(*system, 97).T, y.swapaxes(1, 2)

        outputs, pull = jax.vjp(forward, inputs)
        return outputs, pull(given)[0]

    outputs, slopes = both({n: arrays[n] for n in names}, (arrays["cot_K"], arrays["cot_y"]))
    found = dict(zip(("K", "y"), outputs)) | {f"d{n}": slope for n, slope in slopes.items()}
    for name, value in found.items():
        assert relative_error(value, arrays[name]) <= 5 * tolerances.get(name, 5e-6), name


@pytest.mark.shared
@pytest.mark.parametrize("name", ["legs", "fourier", "legt"])  # rank 2: legt; an odd length: fourier
def test_golden_dplr(name):
    """The kernel from its spectrum, from powers of the dense matrix, and from the recurrence."""
    arrays, _, _ = golden(f"hippo/s4_dplr_{name}")
    wanted = arrays["K"].T
    with jax.enable_x64(True):
        given = [jnp.asarray(arrays[n]) for n in ("A_diag", "P", "B", "C", "dt")]
        spectral = quick(lambda *args: ops.dplr_kernel(*args, len(wanted)))(*given)
        a, b, c = quick(ops.dplr_system)(*given)
        powers = quick(lambda *args: ops.ssm_kernel(*args, len(wanted)))(a, b, c)
        impulse = jnp.zeros((1, *wanted.shape)).at[:, 0].set(1)
        steps, _ = quick(functools.partial(ops.linear_ssm, impl="reference"))(impulse, a, b, c)
    for kernel in (spectral, powers, steps[0]):
        assert relative_error(kernel, wanted) < 1e-11


@pytest.mark.shared
def test_dplr_kernel_in_float32():
    arrays, _, _ = golden("hippo/s4_dplr_legs_64")
    given = [arrays[n].astype(np.complex64) for n in ("A_diag", "P", "B", "C")] + [arrays["dt"].astype(np.float32)]
    kernel = quick(lambda *args: ops.dplr_kernel(*args, 128))(*given)
    assert relative_error(kernel, arrays["K"].T) < 1e-4


def test_memory_of_the_kernel_of_65536_tokens():
    """The Cauchy matrices of all frequencies would be 33 times the kernel."""
    D, n, L = 32, 32, 65_536
    vector, P = jax.ShapeDtypeStruct((D, n), jnp.complex64), jax.ShapeDtypeStruct((1, D, n), jnp.complex64)
    dt = jax.ShapeDtypeStruct((D,), jnp.float32)
    loss = lambda A, P, B, C, dt: jnp.sum(ops.dplr_kernel(A, P, B, C, dt, L) ** 2)  # noqa: E731
    compiled = quick(jax.grad(loss, argnums=4)).lower(vector, P, vector, vector, dt).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 4 * L * D + 16 * 8 * 2**22


def test_modes_of_s4_agree():
    """Convolution with the whole kernel against chunks: outputs and gradients of all parameters."""
    mixer, params = initial(S4Config.tiny(), 8)
    whole = dataclasses.replace(S4Config.tiny(), mode="convolution").make(8)
    x = jax.random.normal(jax.random.key(1), (2, 19, 8))
    ids = np.array([[1] * 16 + [0] * 3, [3] * 19], np.int32)

    def both(mixer, params, x):
        loss = lambda params, x: jnp.sum(jnp.sin(mixer.apply(params, x)[0]))  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    found, wanted = quick(lambda params, x: (both(whole, params, x), both(mixer, params, x)))(params, x)
    for value, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert relative_error(value, want) < 2e-5
    y = quick(lambda params, x: whole.apply(params, x, None, ids)[0])(params, x)
    alone = quick(lambda params, x: mixer.apply(params, x)[0])(params, x)
    assert relative_error(y[0, :16], alone[0, :16]) < 2e-5 and relative_error(y[1], alone[1]) < 2e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_change_of_the_sampling_rate(name):
    """A layer with twice the step sizes, on every second sample of a smooth signal, gives every second output."""
    cfg = dataclasses.replace(CONFIGS[name], dt_min=1e-3, dt_max=1e-2)
    mixer, params = initial(cfg, 8)
    time = np.arange(1200) / 1200
    x = np.sin(2 * np.pi * (3 * time[:, None] + np.arange(8) / 8)).astype(np.float32)[None]
    run = lambda mixer: quick(lambda params, x: mixer.apply(params, x)[0])  # noqa: E731
    slow = run(dataclasses.replace(cfg, rate=2.0).make(8))
    fine, coarse = run(mixer)(params, x), slow(params, x[:, ::2])
    name = "log_step" if name == "S5" else "log_dt"
    unchanged = slow({"params": params["params"] | {name: params["params"][name] - np.log(2)}}, x[:, ::2])
    assert relative_error(coarse, fine[:, ::2]) < 0.02
    assert relative_error(unchanged, fine[:, ::2]) > 0.1


def test_s5_is_its_recurrence():
    """Against numpy, with the dense system of both halves of the conjugate pairs."""
    mixer, params = initial(S5Config.tiny(), 6)
    p = {n: np.asarray(leaf, np.float64) for n, leaf in params["params"].items() if n != "output_linear"}
    eigenvalues = np.minimum(p["Lambda_re"], -1e-4) + 1j * p["Lambda_im"]
    B, C = (p[n][..., 0] + 1j * p[n][..., 1] for n in "BC")
    pair = lambda leaf: np.concatenate([leaf, leaf.conj()], axis=-1)  # noqa: E731
    dt = np.exp(np.tile(p["log_step"], 2))
    a = np.exp(pair(eigenvalues) * dt)
    inward = pair(B.T).T * ((a - 1) / pair(eigenvalues))[:, None]
    x = np.random.default_rng(0).standard_normal((15, 6))
    h, y = np.zeros(len(a), complex), np.zeros_like(x)
    for t in range(len(x)):
        h = a * h + inward @ x[t]
        y[t] = (pair(C) @ h).real + p["D"] * x[t]
    u = np.asarray(jax.nn.gelu(jnp.asarray(y, jnp.float32), approximate=False))
    readout = params["params"]["output_linear"]
    want = u / (1 + np.exp(-(u @ readout["kernel"] + readout["bias"])))
    got, state, _ = quick(mixer.apply)(params, x[None].astype(np.float32))
    assert relative_error(got[0], want) < 1e-5
    assert np.max(np.abs(state.memory[0, :, 0] + 1j * state.memory[0, :, 1] - h[: len(h) // 2])) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_both_ways(name):
    """Backwards is the causal layer on the reversed document; S4 and S4D do not count a token's own input twice."""
    cfg = dataclasses.replace(CONFIGS[name], bidirectional=True)
    mixer, params = initial(cfg, 4)
    p, x = params["params"], np.random.default_rng(0).standard_normal((1, 7, 4)).astype(np.float32)
    run = quick(lambda params, x: mixer.apply(params, x)[::2])
    (y, _), (changed, _) = run(params, x), run(params, np.concatenate([x[:, :-1], -x[:, -1:]], axis=1))
    assert np.abs(y[:, 0] - changed[:, 0]).max() > 1e-4, "the first output ignores the last input"
    swapped = {"params": p | {"C": p["C_backward"], "C_backward": p["C"]}}
    reverse, _ = run(swapped, x[:, ::-1])
    if name == "S5":
        assert relative_error(reverse[:, ::-1], y) < 2e-6
    else:  # the last token has no future
        causal = CONFIGS[name].make(4)
        assert relative_error(y[:, -1], quick(lambda p, x: causal.apply(p, x)[0])(params, x)[:, -1]) < 2e-6
    if name == "S4D":
        ids = np.array([[1] * 4 + [0] + [2] * 7], np.int32)
        packed = np.concatenate([x[:, :5] + 1, x], axis=1)
        both, state, _ = quick(lambda params, x: mixer.apply(params, x, None, ids))(params, packed)
        assert state is None and relative_error(both[:, 5:], y) < 2e-6
    for refused in (lambda: mixer.init_state(1), lambda: mixer.apply(params, x, CONFIGS[name].make(4).init_state(1))):
        with pytest.raises(UserError, match="bidirectional=True reads the future and keeps no state"):
            refused()
    with pytest.raises(UserError, match=f"model.pattern holds {name} that reads the future"):
        LMConfig(dim=32, depth=1, pattern=(BlockConfig(cfg),))


def test_initial_systems():
    """S4 starts as HiPPO-LegS itself, S4D and S5 as its normal part."""
    _, params = initial(S4Config(state_size=8, n_ssm=2), 4)
    p = params["params"]
    A = -np.exp(p["log_A_real"]) + 1j * p["A_imag"]
    assert p["P"].shape == (1, 2, 4, 2) and A.shape == (2, 4)
    low = p["P"][0, ..., 0] + 1j * p["P"][0, ..., 1]
    both = lambda leaf: np.concatenate([leaf, leaf.conj()], axis=-1)[0]  # noqa: E731
    dense = np.diag(both(A)) - np.outer(both(low), both(low).conj())
    turn = both(hippo.nplr("legs", 8)[3][None])
    np.testing.assert_allclose(turn @ dense @ turn.conj().T, hippo.transition("legs", 8)[0], atol=2e-5)
    for form in ("lin", "inv", "legs", "fout"):
        _, params = initial(S4DConfig(init=form, state_size=8), 4)
        wanted, inputs = hippo.diagonal(form, 8)
        found = -np.exp(params["params"]["log_A_real"]) + 1j * params["params"]["A_imag"]
        np.testing.assert_allclose(found, np.tile(wanted, (4, 1)), rtol=1e-5, atol=2e-4)
        B = params["params"]["B"]
        np.testing.assert_allclose(B[..., 0] + 1j * B[..., 1], np.tile(inputs, (4, 1)), rtol=1e-5, atol=1e-5)
    _, params = initial(S5Config(state_size=16, num_blocks=2), 64)
    p = params["params"]
    np.testing.assert_allclose(p["Lambda_im"], np.tile(hippo.nplr("legs", 8)[0].imag, 2), rtol=1e-5)
    steps = np.exp(p["log_step"])
    assert steps.min() >= 0.999e-3 and steps.max() <= 0.1001
    assert 0.8 < np.sum(p["B"] ** 2) / 8 < 1.25 and 0.8 < np.sum(p["C"] ** 2) / 64 * 2 < 1.25


REFUSED = {
    "odd": (lambda: S4DConfig(state_size=5), "S4DConfig.state_size=5 is odd"),
    "steps": (lambda: S4Config(dt_min=0.2), "S4Config.dt_min=0.2 exceeds dt_max=0.1"),
    "init": (lambda: S4DConfig(init="legz"), "S4DConfig.init='legz' is unknown, expected one of lin, inv"),
    "measure": (lambda: S4Config(measure="lmu"), "S4Config.measure='lmu' is unknown"),
    "rate": (lambda: S5Config(rate=0.0), "S5Config.rate=0.0 must be positive"),
    "copies": (lambda: S4Config(n_ssm=3).make(32), "S4Config.n_ssm=3 does not divide the model width=32"),
    "blocks": (lambda: S5Config(state_size=24, num_blocks=8), "S5Config.num_blocks=8 does not divide"),
    "infinite": (lambda: S4DConfig(dt_max=float("inf")), "S4DConfig.dt_max=inf must be finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_configs_are_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
