"""Mamba, Mamba-2's options and the recurrent block of Griffin against independent references and their own papers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors

from seqmodels.convert import torch_names
from seqmodels.errors import UserError
from seqmodels.mixers.base import Context
from seqmodels.mixers.mamba import MambaConfig
from seqmodels.mixers.mamba2 import Mamba2Config
from seqmodels.mixers.rg_lru import GatedUnit, RGLRUConfig
from seqmodels.sharding import unbox
from tests.shared import golden, relative_error, shared_path


def weights(model):
    return safetensors.load_file(shared_path(f"golden/models/{model}/model.safetensors"))


def named(flat, prefix):
    """The torch parameters under `prefix`, in our tree."""
    return torch_names.tree({k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)})


def rms(x, scale, eps):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


MAMBAS = {"mamba": MambaConfig(), "falcon_mamba": MambaConfig(state_size=8, inner_norm_eps=1e-6)}


@pytest.mark.shared
@pytest.mark.parametrize("name", MAMBAS)
def test_mamba_language_model(name):
    """The layers in a bare residual stack: logits, loss, and three statistics of every gradient."""
    arrays, _, _ = golden(f"models/{name}/vectors")
    tokens, mixer = arrays["input_ids"], MAMBAS[name].make(64)

    def loss(flat):
        table = flat["backbone.embeddings.weight"]
        x = table[tokens]
        for i in range(2):
            layer = named(flat, f"backbone.layers.{i}.")
            x = x + mixer.apply({"params": layer["mixer"]}, rms(x, layer["norm"]["scale"], 1e-5))[0]
        logits = rms(x, flat["backbone.norm_f.weight"], 1e-5) @ table.T
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
        return -jnp.mean(chosen), logits

    flat = jax.tree.map(jnp.asarray, weights(name))
    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(flat)
    assert relative_error(logits, arrays["logits"]) <= 2e-5
    stats = json.loads(shared_path(f"golden/models/{name}/grad_stats.json").read_text())
    assert abs(float(value) - stats["loss"]) <= 1e-5
    assert set(stats["grads"]) == set(gradients)
    for parameter, wanted in stats["grads"].items():
        found = np.asarray(gradients[parameter], np.float64)
        assert abs(np.linalg.norm(found) / wanted["l2"] - 1) <= 1e-4, parameter
        assert abs(np.abs(found).max() / wanted["absmax"] - 1) <= 1e-4, parameter
        assert abs(found.sum() - wanted["sum"]) <= 1e-4 * np.abs(found).sum(), parameter


@pytest.mark.shared
@pytest.mark.parametrize("suffix", ["", "_state", "_packed"])
def test_rg_lru(suffix):
    """The unit alone, with its own positions: the golden files write rec_gate for recurrent_gate."""
    arrays, _, tolerances = golden(f"ops/rg_lru{suffix}")
    x, first = arrays["x"], arrays["position_ids"] == 0
    ids = np.cumsum(first, axis=1).astype(np.int32) if suffix == "_packed" else None
    state = arrays.get("initial_state", np.zeros((x.shape[0], x.shape[2]), np.float32))
    own = {"recurrent_param": "a_param"}
    own |= {f"{gate}_gate_{part}": f"{gate[:3] if gate == 'recurrent' else gate}_gate_{part}"
            for gate in ("input", "recurrent") for part in ("weight", "bias")}  # fmt: skip
    params = {ours: arrays[theirs] for ours, theirs in own.items()}
    unit = GatedUnit(RGLRUConfig(num_heads=arrays["input_gate_bias"].shape[0]), x.shape[2])

    @jax.jit
    def run(params, x, state, given):
        forward = lambda params, x, state: unit.apply({"params": params}, x, first, state, ids)  # noqa: E731
        outputs, pull = jax.vjp(forward, params, x, state)
        return outputs, pull(given)

    (o, last), (d_params, dx, d_state) = run(params, x, state, (arrays["do"], arrays["dht"]))
    found = {"o": o, "final_state": last, "dx": dx, "dinitial_state": d_state}
    found |= {f"d{theirs}": d_params[ours] for ours, theirs in own.items()}
    for name in tolerances:
        assert relative_error(found[name], arrays[name]) <= 5 * tolerances[name], name


@pytest.mark.shared
def test_griffin_block_of_a_model():
    """The recurrent block and its MLP in the first layer of a RecurrentGemma: hidden states after it."""
    arrays, _, _ = golden("models/recurrent_gemma/vectors")
    layer = named(weights("recurrent_gemma"), "model.layers.0.")
    x, mixer = arrays["hidden_0"], RGLRUConfig(num_heads=4).make(64)

    @jax.jit
    def block(layer, x):
        norm = lambda x, name: rms(x, 1 + layer[name]["scale"], 1e-6)  # noqa: E731
        h = x + mixer.apply({"params": layer["temporal_block"]}, norm(x, "temporal_pre_norm"))[0]
        mlp, z = layer["mlp_block"], norm(h, "channel_pre_norm")
        linear = lambda z, name: z @ mlp[name]["kernel"] + mlp[name]["bias"]  # noqa: E731
        return h + linear(jax.nn.gelu(linear(z, "gate_proj")) * linear(z, "up_proj"), "down_proj")

    assert relative_error(block(layer, x), arrays["hidden_1"]) <= 2e-5


def initial(cfg, dim, depth=4):
    x = jnp.zeros((1, 1, dim))
    init = jax.jit(lambda key: unbox(cfg.make(dim).init(key, x, context=Context(depth=depth)))["params"])
    return jax.tree.map(np.asarray, init(jax.random.key(0)))


@pytest.mark.parametrize(
    ("dim", "layers", "total"),
    [(768, 24, 129_135_360), (1024, 48, 371_516_416), (2048, 48, 1_372_178_432), (2560, 64, 2_768_345_600)],
)
def test_mamba_has_the_released_sizes(dim, layers, total):
    mixer = MambaConfig().make(dim)
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 2, dim)))
    count = sum(leaf.size for leaf in jax.tree.leaves(unbox(shapes)))
    assert layers * count + (layers + 1) * dim + 50280 * dim == total


def test_mamba_starts_where_the_paper_says():
    params = initial(MambaConfig(), 128)
    np.testing.assert_allclose(np.exp(params["A_log"]), np.tile(np.arange(1, 17), (256, 1)), rtol=1e-6)
    steps = np.logaddexp(0, params["dt_proj"]["bias"])
    assert 0.999e-3 <= steps.min() < 2e-3 and 0.05 < steps.max() <= 0.1001
    for name, fan_in in (("in_proj", 128), ("x_proj", 256), ("dt_proj", 8)):
        bound = fan_in**-0.5
        assert 0.97 * bound < np.abs(params[name]["kernel"]).max() <= bound, name
    bound = 256**-0.5 / 4**0.5  # inner width, four layers
    assert 0.97 * bound < np.abs(params["out_proj"]["kernel"]).max() <= bound
    assert np.all(params["D"] == 1) and np.abs(params["conv1d"]["bias"]).max() <= 0.5


def test_griffin_starts_where_the_paper_says():
    params = initial(RGLRUConfig(), 256)
    decay = np.exp(-8 * np.logaddexp(0, params["rg_lru"]["recurrent_param"]))
    assert 0.8999 <= decay.min() < 0.91 and 0.99 < decay.max() <= 0.9991
    assert abs(params["rg_lru"]["input_gate_weight"].std() * 32**0.5 - 1) < 0.05


@pytest.mark.parametrize("state_size", [16, 256])
def test_mamba_2_over_its_options(state_size):
    """Groups, the skip and the order of gate and norm, against the recurrence written out in numpy."""
    cfg = Mamba2Config(state_size=state_size, head_dim=4, num_groups=2, norm_before_gate=state_size == 256)
    E, H, G, N, T = 16, 4, 2, state_size, 9
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), initial(cfg, 8)
    )
    x = rng.standard_normal((1, T, 8)).astype(np.float32)
    y = jax.jit(lambda params, x: cfg.make(8).apply({"params": params}, x)[0])(params, x)

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    silu = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    z, xBC, dt = np.split(x[0] @ p["in_proj"]["kernel"], (E, 2 * E + 2 * G * N), axis=-1)
    taps = np.pad(xBC, ((3, 0), (0, 0)))
    windows = np.stack([taps[i : i + T] for i in range(4)])
    xBC = silu(np.sum(windows * p["conv1d"]["kernel"][:, None], axis=0) + p["conv1d"]["bias"])
    u, B, C = np.split(xBC, (E, E + G * N), axis=-1)
    dt, S, o = np.logaddexp(0, dt + p["dt_bias"]), np.zeros((H, N, 4)), np.zeros((T, H, 4))
    for t in range(T):
        for h in range(H):
            u_t, B_t, C_t = u[t].reshape(H, 4)[h], *(rows[t].reshape(G, N)[h // 2] for rows in (B, C))
            S[h] = np.exp(-dt[t, h] * np.exp(p["A_log"][h])) * S[h] + dt[t, h] * np.outer(B_t, u_t)
            o[t, h] = S[h].T @ C_t + p["D"][h] * u_t
    o, gate = o.reshape(T, E), silu(z)

    def norm(x):
        groups = x.reshape(T, G, -1)
        return (groups / np.sqrt(np.mean(groups**2, axis=-1, keepdims=True) + 1e-5)).reshape(T, E) * p["norm"]["scale"]

    o = norm(o) * gate if cfg.norm_before_gate else norm(o * gate)
    assert relative_error(y[0], o @ p["out_proj"]["kernel"]) <= 1e-5


REFUSED = {
    "rank": (lambda: MambaConfig(dt_rank=0), "MambaConfig.dt_rank=0 is no rank"),
    "step sizes": (lambda: MambaConfig(dt_min=0.2), "dt_min=0.2 exceeds dt_max=0.1"),
    "state": (lambda: MambaConfig(state_size=0), "state_size=0 must be positive"),
    "heads": (lambda: RGLRUConfig(num_heads=5).make(32), "num_heads=5 does not divide the recurrent width=32"),
    "decays": (lambda: RGLRUConfig(min_decay=0.9, max_decay=1.0), "no range of decays"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_configs_are_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
