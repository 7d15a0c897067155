"""Layers against independent PyTorch references: outputs, input gradients and every parameter gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors

from seqmodels.convert import torch_names
from seqmodels.mixers import (
    AttentionConfig,
    Context,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    GLAConfig,
    HGRN2Config,
    HGRNConfig,
    KDAConfig,
    Mamba2Config,
    MixtureOfMemoriesConfig,
    RetNetConfig,
    RotaryConfig,
)
from seqmodels.mixers.kda import kda_gate
from tests.shared import golden, relative_error, shared_path

CHUNKED = 5  # the golden README: allow 5 times the tolerance where the algorithm is of another kind
INNER = GatedDeltaNetConfig(num_heads=2, head_dim=16, expand_v=1.0)
LAYERS = {
    "gla": GLAConfig(num_heads=2, expand_k=1.0),
    "retention": RetNetConfig(num_heads=2),
    "delta_net": DeltaNetConfig(num_heads=2),
    "gated_deltanet": GatedDeltaNetConfig(num_heads=2, head_dim=16),
    "kda": KDAConfig(num_heads=2, head_dim=16),
    "hgrn": HGRNConfig(),
    "hgrn2": HGRN2Config(expand_ratio=16),
    "mom": MixtureOfMemoriesConfig(INNER, num_memories=4, top_k=2),
    "mom_single_kv": MixtureOfMemoriesConfig(INNER, 4, 1, shared_memory=False, single_kv_proj=True),
}

pytestmark = pytest.mark.shared


def named(arrays, prefix):
    """The torch parameters under `prefix`, in our tree."""
    return torch_names.tree({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    arrays, attrs, tolerances = golden(f"layers/{name}")
    mixer = LAYERS[name].make(attrs["kwargs"]["hidden_size"])
    x, dy, params = arrays["x"], arrays["dy"], named(arrays, "param/")
    bound = arrays.get("lower_bound")
    # Two layers: softmax((0, logit)) gives layer 1 the bound sigmoid(logit).
    logit = None if bound is None else jnp.asarray(np.log(bound) - np.log1p(-bound))
    ours = jax.eval_shape(mixer.init, jax.random.key(0), x)["params"]
    assert jax.tree.structure(jax.tree.map(lambda leaf: 0, params)) == jax.tree.structure(
        jax.tree.map(lambda leaf: 0, ours, is_leaf=lambda leaf: hasattr(leaf, "names"))
    )

    def loss(params, x, logit):
        shared = None if logit is None else {"lower_bounds": jnp.stack([jnp.zeros_like(logit), logit])}
        y, _, _ = mixer.apply({"params": params}, x, context=Context(1, 2, shared))
        return jnp.sum(y * dy), y

    run = jax.jit(jax.grad(loss, argnums=(0, 1) if logit is None else (0, 1, 2), has_aux=True))
    gradients, y = run(params, x, logit)
    got = {"y": y, "dx": gradients[1]}
    wanted = {"y": arrays["y"], "dx": arrays["dx"]}
    if bound is not None:
        got["dlower_bound"], wanted["dlower_bound"] = gradients[2] / (bound * (1 - bound)), arrays["dlower_bound"]
    for key in got:
        assert relative_error(got[key], wanted[key]) <= CHUNKED * tolerances[key], key
    for torch_name in (key for key in arrays if key.startswith("grad/")):
        whole, member = torch_names.member(torch_name.removeprefix("grad/"))
        path, expected = torch_names.to_ours(whole, arrays[torch_name])
        actual = gradients[0]
        for module in path:
            actual = actual[module]
        actual = actual if member is None else actual[member]
        assert relative_error(actual, expected) <= CHUNKED * tolerances[torch_name], torch_name


def test_kda_gate():
    arrays, attrs, tolerances = golden("ops/kda_gate")
    inputs = (arrays["x"], arrays["A_log"], arrays["dt_bias"])
    plain, bounded = kda_gate(*inputs), kda_gate(*inputs, attrs["lower_bound"])
    assert relative_error(plain, arrays["g"]) <= tolerances["g"]
    assert relative_error(bounded, arrays["g_lower"]) <= tolerances["g_lower"]

    def loss(*inputs):
        both = kda_gate(*inputs), kda_gate(*inputs, attrs["lower_bound"])
        return jnp.sum(both[0] * arrays["cot_g"]) + jnp.sum(both[1] * arrays["cot_g_lower"])

    for name, gradient in zip(("x", "A_log", "dt_bias"), jax.grad(loss, argnums=(0, 1, 2))(*inputs)):
        assert relative_error(gradient, arrays[f"d{name}"]) <= tolerances[f"d{name}"], name


MODELS = {
    "llama": ("model", "self_attn", AttentionConfig(num_heads=4, num_kv_heads=2)),
    "qwen3": (
        "model",
        "self_attn",
        AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, qk_norm=True, rotary=RotaryConfig(base=1e6)),
    ),
    "mamba2": ("backbone", "mixer", Mamba2Config(state_size=16, head_dim=16, num_groups=2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_first_block_of_a_model(name):
    """The mixer inside the first block: hidden states after the block from the embedded tokens."""
    root, module, cfg = MODELS[name]
    arrays, _, _ = golden(f"models/{name}/vectors")
    weights = safetensors.load_file(shared_path(f"golden/models/{name}/model.safetensors"))
    layer = named(weights, f"{root}.layers.0.")
    embedding = "embeddings" if name == "mamba2" else "embed_tokens"
    x = weights[f"{root}.{embedding}.weight"][arrays["input_ids"]]

    def norm(x, module):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + cfg.norm_eps) * layer[module]["scale"]

    pre, post = ("norm", None) if name == "mamba2" else ("input_layernorm", "post_attention_layernorm")
    mixer = cfg.make(x.shape[-1])
    h = x + np.asarray(jax.jit(lambda p, x: mixer.apply({"params": p}, x)[0])(layer[module], norm(x, pre)))
    if post:
        mlp, z = layer["mlp"], norm(h, post)
        gate, up = z @ mlp["gate_proj"]["kernel"], z @ mlp["up_proj"]["kernel"]
        h = h + (gate / (1 + np.exp(-gate)) * up) @ mlp["down_proj"]["kernel"]
    after = "hidden_0" if name == "mamba2" else "hidden_1"  # transformers' Mamba-2 records after the block
    assert relative_error(h, arrays[after]) <= 2e-5
