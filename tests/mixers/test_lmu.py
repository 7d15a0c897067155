"""The LMU layer, plain and spiking, and the embedding of LMUFormer, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.mixers import ConvEmbeddingConfig, LMUConfig, SpikingMLPConfig
from seqmodels.ops import hippo
from seqmodels.sharding import unbox
from tests.contracts import laws
from tests.shared import relative_error

D, T = 6, 20
X = jax.random.normal(jax.random.key(0), (1, T, D))
SPIKING = LMUConfig(memory_size=4, window=8.0, spiking=True)


def parameters(cfg):
    rng = np.random.default_rng(1)
    params = unbox(jax.jit(cfg.make(D).init)(jax.random.key(1), X))["params"]
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5 * rng.standard_normal(leaf.shape).astype("f"), params)


def fire(x, threshold):
    v, out = np.zeros(x.shape[1]), np.zeros_like(x)
    for t, x_t in enumerate(x):
        v = v + (x_t - v) / 2
        out[t] = v >= threshold
        v = np.where(out[t], 0, v)
    return out


@pytest.mark.parametrize("cfg", [LMUConfig(memory_size=4, window=8.0), SPIKING], ids=["plain", "spiking"])
def test_the_layer(cfg):
    params = parameters(cfg)
    params["u_proj"]["bias"][:] = 1.5 if cfg.spiking else 0.5  # some tokens are written, others are not
    y, _, _ = jax.jit(lambda params, x: cfg.make(D).apply({"params": params}, x))(params, X)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    linear = lambda x, name: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    affine = lambda x, name: x * p[name]["scale"] + p[name]["bias"]  # noqa: E731
    act = fire if cfg.spiking else lambda x, _: np.maximum(x, 0)
    x = np.asarray(X[0], np.float64)
    x = fire(affine(x, "x_norm"), 0.5) if cfg.spiking else x
    u = act(linear(x, "u_proj"), 1.0)[:, 0]
    assert 0 < np.count_nonzero(u) < T, "the case is too easy"
    m = hippo.memory(hippo.Measure("lmu", theta=8.0), 4, u, 1.0)
    m = fire(affine(m, "m_norm"), 1.0) if cfg.spiking else m
    h = act(linear(np.concatenate([m, x], axis=-1), "h_proj"), 1.0)
    assert relative_error(y[0], linear(h, "o_proj")) <= 1e-5


@pytest.mark.parametrize("law", [laws.check_split, laws.check_segments, laws.check_padding])
@pytest.mark.parametrize("cfg", [SPIKING, ConvEmbeddingConfig(num_convs=1, spiking=True)], ids=["memory", "embedding"])
def test_spiking_layers_keep_the_laws(law, cfg):
    law(cfg)


@pytest.mark.parametrize("spiking", [False, True], ids=["plain", "spiking"])
def test_the_embedding(spiking):
    cfg = ConvEmbeddingConfig(num_convs=2, spiking=spiking)
    params = parameters(cfg)
    y, _, _ = jax.jit(lambda params, x: cfg.make(D).apply({"params": params}, x))(params, X)

    def conv(x, name):
        padded = np.pad(x, ((2, 0), (0, 0)))
        return sum(padded[i : i + T] @ p[name]["conv"]["kernel"][i * D : (i + 1) * D] for i in range(3))

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    affine = lambda x, name: x * p[name]["scale"] + p[name]["bias"]  # noqa: E731
    c = np.asarray(X[0], np.float64)
    if spiking:  # the last of the first convolutions is bare
        c = conv(fire(affine(conv(c, "conv_0"), "norm_0"), 1.0), "conv_1")
        fired = fire(affine(c, "norm_residual"), 1.0)
        assert 0 < fired.mean() < 1
        assert relative_error(y[0], c + conv(fired, "conv_residual")) <= 1e-5
        return
    for i in range(2):
        c = affine(np.maximum(conv(c, f"conv_{i}"), 0), f"norm_{i}")
    assert relative_error(y[0], c + conv(c, "conv_residual")) <= 1e-5


def test_the_spiking_mlp():
    cfg = SpikingMLPConfig(ratio=2)
    params = parameters(cfg)
    y, _, _ = jax.jit(lambda params, x: cfg.make(D).apply({"params": params}, 4 * x))(params, X)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    linear = lambda x, name: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    affine = lambda x, name: x * p[name]["scale"] + p[name]["bias"]  # noqa: E731
    first = fire(affine(4 * np.asarray(X[0], np.float64), "norm"), 1.0)
    second = fire(affine(linear(first, "up_proj"), "up_norm"), 1.0)
    assert 0 < first.mean() < 1 and 0 < second.mean() < 1
    assert relative_error(y[0], linear(second, "down_proj")) <= 1e-5


def test_the_speech_model_has_the_published_size():
    """1,621,796 parameters, of which the encoder, a batch norm that is folded here, and the head added."""

    def count(cfg):
        shapes = jax.eval_shape(cfg.make(256).init, jax.random.key(0), jnp.zeros((1, 2, 256)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    narrow = 3 * 128 * 256  # their first convolution goes from 128 channels to 256, ours stays at 256
    embedding = count(ConvEmbeddingConfig()) - narrow
    memory = count(LMUConfig()) + 2 * 256
    mixer, head = 2 * 256 * 1024 + 1024 + 256 + 2 * (1024 + 256), 256 * 35 + 35
    assert embedding + memory + mixer + head == 1_621_796


@pytest.mark.parametrize("kind", [LMUConfig, ConvEmbeddingConfig, SpikingMLPConfig])
def test_neurons_that_overshoot_are_refused(kind):
    with pytest.raises(UserError, match=rf"{kind.__name__}\.tau=0\.4 overshoots") as caught:
        kind(tau=0.4)
    assert "\n" not in str(caught.value)
