"""Where mixers meet: one mixer's special case is another mixer, or a formula that can be written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.mixers import (
    Context,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    GLAConfig,
    HGRN2Config,
    Mamba2Config,
    RetNetConfig,
)
from seqmodels.mixers.hgrn import lower_bound
from seqmodels.mixers.hgrn2 import bounded_log_sigmoid
from seqmodels.sharding import unbox
from tests.shared import relative_error

DIM, T = 32, 37
X = jax.random.normal(jax.random.key(0), (2, T, DIM))


def draw(key, leaf):
    return jax.random.normal(key, leaf.shape) / (leaf.shape[0] ** 0.5 if leaf.ndim > 1 else 1)


def build(cfg, **fixed):
    """The mixer, and well-scaled parameters in which top-level vectors named in `fixed` have that value."""
    mixer = cfg.make(DIM)
    params = unbox(jax.eval_shape(mixer.init, jax.random.key(0), X))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(structure, [draw(*pair) for pair in zip(keys, leaves)])
    for name, value in fixed.items():
        params[name] = jnp.full_like(params[name], value)
    return mixer, params


def apply(mixer, params, x=X, **kwargs):
    return jax.jit(lambda p, x: mixer.apply({"params": p}, x, **kwargs))(params, x)


def test_gla_with_constant_gates_is_retnet_without_phases():
    retnet, params = build(RetNetConfig(num_heads=2, rotary_base=None))
    gla = GLAConfig(num_heads=2, expand_k=1.0, expand_v=2.0, gate_low_rank_dim=4).make(DIM)
    open_gate = (1 - 2.0 ** (-5 - np.arange(2))) ** 16  # sigmoid of the logit, before the division of its log by 16
    logit = np.repeat(np.log(open_gate) - np.log1p(-open_gate), DIM // 2).astype(np.float32)
    gk = {"down": {"kernel": jnp.zeros((DIM, 4))}, "up": {"kernel": jnp.zeros((4, DIM)), "bias": jnp.asarray(logit)}}
    assert relative_error(apply(gla, params | {"gk_proj": gk})[0], apply(retnet, params)[0]) < 1e-5


def test_gated_delta_net_without_decay_is_delta_net():
    gated, params = build(GatedDeltaNetConfig(num_heads=2, head_dim=16, expand_v=1.0), A_log=-1e9)
    plain = DeltaNetConfig(num_heads=2, output_gate=True).make(DIM)
    same = {name: value for name, value in params.items() if name not in ("A_log", "dt_bias", "a_proj")}
    assert relative_error(apply(gated, params)[0], apply(plain, same)[0]) < 1e-5


def test_a_delta_rule_reads_what_it_wrote_and_writes_it_once():
    K, V = 8, 5
    keys = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (K, K)))[0][:6]
    values = jax.random.normal(jax.random.key(3), (6, V))
    once = jnp.arange(6)
    twice = jnp.concatenate([once, jnp.array([4, 5, 5, 2])])

    def memory(order):
        k, v = keys[order][None, :, None], values[order][None, :, None]
        return ops.delta_rule(k, k, v, jnp.ones(k.shape[:3]))[1][0, 0]

    stored = memory(once)
    np.testing.assert_allclose(keys @ stored, values, atol=2e-6)
    np.testing.assert_allclose(memory(twice), stored, atol=2e-6)


def quadratic_mamba2(params, x, cfg):
    """Mamba-2 for one sequence as masked attention, in float64: ``Y = ((C Bᵀ) ∘ L)(ΔX) + D X``."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    E, GN = cfg.expand * DIM, cfg.num_groups * cfg.state_size
    H, length = E // cfg.head_dim, len(x)
    softplus, silu = lambda a: np.logaddexp(0, a), lambda a: a / (1 + np.exp(-a))
    z, xBC, dt = np.split(np.asarray(x, np.float64) @ p["in_proj"]["kernel"], (E, 2 * E + 2 * GN), axis=-1)
    W = p["conv1d"]["kernel"].shape[0]
    padded = np.concatenate([np.zeros((W - 1, xBC.shape[1])), xBC])
    xBC = silu(sum(padded[w : w + length] * p["conv1d"]["kernel"][w] for w in range(W)) + p["conv1d"]["bias"])
    x, Bs, Cs = np.split(xBC, (E, E + GN), axis=-1)
    dt = softplus(dt + p["dt_bias"])
    total = np.cumsum(-dt * np.exp(p["A_log"]), axis=0)
    y = np.zeros((length, E))
    for h in range(H):
        group = slice(h // (H // cfg.num_groups) * cfg.state_size, (h // (H // cfg.num_groups) + 1) * cfg.state_size)
        own = slice(h * cfg.head_dim, (h + 1) * cfg.head_dim)
        mask = np.tril(np.exp(np.minimum(total[:, None, h] - total[None, :, h], 0)))
        y[:, own] = (Cs[:, group] @ Bs[:, group].T * mask) @ (dt[:, h, None] * x[:, own]) + p["D"][h] * x[:, own]
    y = (y * silu(z)).reshape(length, cfg.num_groups, -1)
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + cfg.norm_eps)
    return (y.reshape(length, E) * p["norm"]["scale"]) @ p["out_proj"]["kernel"]


@pytest.mark.parametrize("fixed", [{}, {"A_log": -1e9}], ids=["decay", "decay 1: linear attention"])
def test_mamba2_is_masked_attention(fixed):
    cfg = Mamba2Config(state_size=8, head_dim=16, num_groups=2)
    mixer, params = build(cfg, **fixed)
    y, _, _ = apply(mixer, params)
    assert relative_error(y[1], quadratic_mamba2(params, X[1], cfg)) < 1e-5


def test_step_sizes_hold_or_reset_mamba2():
    cfg = Mamba2Config(state_size=8, head_dim=16)
    mixer, params = build(cfg, A_log=0.0)
    _, state, _ = apply(mixer, params)
    held = apply(mixer, params | {"dt_bias": jnp.full_like(params["dt_bias"], -1e4)}, state=state)[1]
    np.testing.assert_array_equal(held.memory, state.memory)
    reset = params | {"dt_bias": jnp.full_like(params["dt_bias"], 1e4)}
    long = apply(mixer, reset, state=state)[1]
    short = apply(mixer, reset, X[:, -4:])[1]  # the last token's write depends on four inputs
    np.testing.assert_allclose(long.memory, short.memory, rtol=1e-5)


def test_a_closed_input_gate_writes_nothing_to_hgrn2():
    mixer, params = build(HGRN2Config(expand_ratio=16))
    kernel = jnp.zeros_like(params["f_proj"]["kernel"]).at[0].set(1e4)
    y, state, _ = apply(mixer, params | {"f_proj": {"kernel": kernel}}, X.at[..., 0].set(1.0))
    assert not np.any(state.memory) and not np.any(y)


def test_lower_bounds_grow_evenly_with_depth_at_initialisation():
    shared = {"lower_bounds": jnp.zeros((5, DIM))}
    bounds = [lower_bound(Context(layer, 5, shared), DIM) for layer in range(5)]
    np.testing.assert_allclose(bounds, np.broadcast_to(np.arange(5)[:, None] / 5, (5, DIM)), atol=1e-6)
    traced = jax.jit(lambda layer: lower_bound(Context(layer, 5, shared), DIM))(3)
    np.testing.assert_allclose(traced, bounds[3], atol=1e-6)
    assert not np.any(lower_bound(Context(3, 5, None), DIM)), "without a table there is no bound"
    table = jax.random.normal(jax.random.key(0), (5, DIM))
    assert not np.any(lower_bound(Context(0, 5, {"lower_bounds": table}), DIM)), "layer 0 ignores the table"


def test_bounded_log_sigmoid_is_the_logarithm_and_stays_finite():
    logits = jnp.array([-1e4, -30.0, -3.0, 0.0, 4.0, 1e4])
    for bound in (0.0, 0.3, 0.9):
        value, gradient = jax.vmap(jax.value_and_grad(bounded_log_sigmoid), (0, None))(logits, jnp.float32(bound))
        x = np.asarray(logits, np.float64)
        with np.errstate(over="ignore", divide="ignore"):
            forget = np.log(bound + (1 - bound) / (1 + np.exp(-x)))
        np.testing.assert_allclose(
            value, forget if bound else np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))), rtol=1e-5
        )
        assert np.isfinite(gradient).all()
