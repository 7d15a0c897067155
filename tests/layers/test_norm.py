"""Norms: golden vectors, zero rows, groups, gates, dtypes, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.layers.norm import GatedRMSNorm, LayerNorm, RMSNorm, l2_norm
from tests.shared import golden, relative_error


@pytest.mark.shared
def test_golden_gated_rms_norm():
    arrays, attrs, tol = golden("ops/gated_rmsnorm")
    size, eps = attrs["group_size"], attrs["eps"]
    given = tuple(jnp.asarray(arrays[name]) for name in ("x", "weight", "z"))

    def run(x, weight, z):
        params = {"params": {"scale": weight}}
        return {
            "o_plain": RMSNorm(eps).apply(params, x),
            "o_norm_before_gate": GatedRMSNorm(eps).apply(params, x, z),
            "o_gate_before_norm": GatedRMSNorm(eps, gate_first=True).apply(params, x, z),
            "o_grouped": GatedRMSNorm(eps, size, gate_first=True).apply(params, x, z),
        }

    out, vjp = jax.vjp(jax.jit(run), *given)
    grads = vjp({name: jnp.asarray(arrays[f"cot_{name}"]) for name in out})
    for name, value in (out | dict(zip(("dx", "dweight", "dz"), grads, strict=True))).items():
        assert relative_error(value, arrays[name]) <= tol[name], name


@pytest.mark.shared
@pytest.mark.parametrize("name", ["l2norm", "l2norm_tiny"])
def test_golden_l2_norm(name):
    arrays, attrs, tol = golden(f"ops/{name}")
    out, vjp = jax.vjp(lambda x: l2_norm(x, attrs["eps"]), jnp.asarray(arrays["x"]))
    assert relative_error(out, arrays["o"]) <= tol["o"]
    assert relative_error(vjp(jnp.asarray(arrays["do"]))[0], arrays["dx"]) <= tol["dx"]


def test_zero_rows_have_finite_gradients():
    zeros = jnp.zeros((2, 4))
    norms = [l2_norm, lambda x: RMSNorm().init_with_output(jax.random.key(0), x)[0]]
    for norm in norms:
        assert np.isfinite(jax.grad(lambda x, norm=norm: jnp.sum(norm(x)))(zeros)).all()


def test_layer_norm_is_the_textbook_formula():
    x = jax.random.normal(jax.random.key(0), (3, 8)) * 5 + 2
    params = {"params": {"scale": jnp.arange(8.0), "bias": jnp.arange(8.0) + 1}}
    x64 = np.asarray(x, np.float64)
    want = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-5) * np.arange(8) + 1
    np.testing.assert_allclose(LayerNorm().apply(params, x), want + np.arange(8), rtol=0, atol=1e-5)
    assert set(LayerNorm(use_bias=False).init(jax.random.key(0), x)["params"]) == {"scale"}


def test_sigmoid_gate_and_groups():
    x, z = (jax.random.normal(key, (2, 8)) for key in jax.random.split(jax.random.key(1)))
    y, _ = GatedRMSNorm(group_size=4, activation="sigmoid").init_with_output(jax.random.key(0), x, z)
    grouped = np.asarray(x).reshape(2, 2, 4)
    want = grouped / np.sqrt(np.mean(grouped**2, -1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, want.reshape(2, 8) / (1 + np.exp(-z)), rtol=0, atol=1e-5)


def test_bfloat16_is_normalised_in_float32():
    x = (300 + jax.random.normal(jax.random.key(2), (4, 64))).astype(jnp.bfloat16)
    for norm in (RMSNorm(), LayerNorm()):
        y, _ = norm.init_with_output(jax.random.key(0), x)
        want, _ = norm.init_with_output(jax.random.key(0), x.astype(jnp.float32))
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


def test_bad_options_are_refused():
    x = jnp.ones((2, 6))
    with pytest.raises(ValueError, match="group_size=4 does not divide the 6 features"):
        GatedRMSNorm(group_size=4).init(jax.random.key(0), x, x)
    with pytest.raises(ValueError, match="activation='relu'"):
        GatedRMSNorm(activation="relu").init(jax.random.key(0), x, x)
