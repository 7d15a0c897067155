"""Layers against independent PyTorch references: outputs, input gradients and every parameter gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.convert import torch_names
from seqmodels.mixers import (
    Context,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    GLAConfig,
    HGRN2Config,
    HGRNConfig,
    KDAConfig,
    RetNetConfig,
)
from seqmodels.mixers.kda import kda_gate
from tests.shared import golden, relative_error

CHUNKED = 5  # the golden README: allow 5 times the tolerance where the algorithm is of another kind
LAYERS = {
    "gla": GLAConfig(num_heads=2, expand_k=1.0),
    "retention": RetNetConfig(num_heads=2),
    "delta_net": DeltaNetConfig(num_heads=2),
    "gated_deltanet": GatedDeltaNetConfig(num_heads=2, head_dim=16),
    "kda": KDAConfig(num_heads=2, head_dim=16),
    "hgrn": HGRNConfig(),
    "hgrn2": HGRN2Config(expand_ratio=16),
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
        path, expected = torch_names.to_ours(torch_name.removeprefix("grad/"), arrays[torch_name])
        actual = gradients[0]
        for module in path:
            actual = actual[module]
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
