"""`Linear` and the MLP: values, parameter names, widths, dtypes, logical axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.mlp import MLPConfig


def test_linear_is_an_affine_map_with_logical_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))
    layer = Linear(7, axes=("embed", "mlp"), use_bias=True)
    boxed = layer.init(jax.random.key(1), x)["params"]
    assert boxed["kernel"].names == ("embed", "mlp") and boxed["bias"].names == ("mlp",)
    kernel, bias = jax.random.normal(jax.random.key(2), (5, 7)), jnp.arange(7.0)
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, np.einsum("abi,io->abo", x, kernel) + np.arange(7), rtol=0, atol=1e-5)
    assert set(Linear(7, axes=("embed", None)).init(jax.random.key(1), x)["params"]) == {"kernel"}


def test_linear_initialisation_and_dtypes():
    x = jnp.ones((1, 400))
    layer = Linear(400, axes=(None, None), dtype=jnp.bfloat16)
    y, params = layer.init_with_output(jax.random.key(0), x)
    kernel = meta.unbox(params)["params"]["kernel"]
    assert kernel.dtype == jnp.float32 and y.dtype == jnp.bfloat16
    assert abs(float(kernel.std()) - 0.02) < 2e-4 and abs(float(kernel.mean())) < 2e-4


@pytest.mark.parametrize(
    ("config", "dim", "width"),
    [
        (MLPConfig(), 768, 2048),  # two thirds of four
        (MLPConfig(), 4096, 11_008),  # LLaMA 7B
        (MLPConfig(), 128, 512),  # 341 -> 512
        (MLPConfig(multiple_of=1), 128, 341),
        (MLPConfig(ratio=2.0, activation="gelu", multiple_of=1), 100, 200),
        (MLPConfig(hidden=17), 100, 17),
    ],
)
def test_hidden_width(config, dim, width):
    assert config.width(dim) == width


def test_mlp_values_names_and_flops():
    x = jax.random.normal(jax.random.key(0), (2, 8))
    cfg = MLPConfig(multiple_of=4)
    y, params = cfg.make(8).init_with_output(jax.random.key(1), x)
    params = meta.unbox(params)["params"]
    kernels = {name: np.asarray(leaf["kernel"]) for name, leaf in params.items()}
    gate, up = x @ kernels["gate_proj"], x @ kernels["up_proj"]
    np.testing.assert_allclose(y, gate / (1 + np.exp(-gate)) * up @ kernels["down_proj"], rtol=0, atol=1e-7)
    assert sum(k.size for k in kernels.values()) * 2 == cfg.flops_per_token(8)
    gelu = MLPConfig(activation="gelu", multiple_of=4)
    _, params = gelu.make(8).init_with_output(jax.random.key(1), x)
    assert set(params["params"]) == {"up_proj", "down_proj"}
    assert sum(p.size for p in jax.tree.leaves(meta.unbox(params))) * 2 == gelu.flops_per_token(8)


def test_bad_mlp_options_are_refused():
    with pytest.raises(UserError, match=r"mlp\.activation='relu'"):
        MLPConfig(activation="relu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="hidden=0"):
        MLPConfig(hidden=0)
