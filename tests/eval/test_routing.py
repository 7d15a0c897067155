"""Which memories the tokens use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from eval.routing import BYTE_CLASSES, byte_classes, choices, plot_classes, plot_history, shares
from seqmodels.layers.mlp import MLPConfig
from seqmodels.layers.routing import Router
from seqmodels.mixers import GatedDeltaNetConfig, MixtureOfMemoriesConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sharding import unbox

MOM = MixtureOfMemoriesConfig.tiny()
PLAIN, MIXED = (BlockConfig(mixer, MLPConfig(hidden=16)) for mixer in (GatedDeltaNetConfig.tiny(), MOM))


def test_choices_of_scanned_and_remaining_layers():
    cfg = LMConfig(dim=32, depth=5, vocab_size=40, pattern=(MIXED, PLAIN))  # two periods and a remainder
    tokens = jax.random.randint(jax.random.key(0), (2, 7), 0, 40)
    params = unbox(jax.jit(cfg.make().init)(jax.random.key(1), tokens))
    found = jax.jit(lambda params: choices(cfg.make(), params, tokens))(params)
    assert list(found) == [0, 2, 4] and all(choice.shape == (2, 7, 2) for choice in found.values())
    assert not np.array_equal(found[0], found[2])

    backbone = params["params"]["backbone"]["stack"]["periods"]["block_0"]
    x = params["params"]["embedding"][tokens]
    x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + MIXED.norm_eps) * backbone["mixer_norm"]["scale"][0]
    gate = jax.tree.map(lambda leaf: leaf[0], backbone["mixer"]["gate"])
    expected = Router(4, 2).apply({"params": gate}, x)
    np.testing.assert_array_equal(found[0], expected.choice)


def test_a_model_without_routers_has_no_choices():
    cfg = LMConfig(dim=32, depth=1, vocab_size=40, pattern=(dataclasses.replace(PLAIN, mlp=None),))
    tokens = jnp.zeros((1, 3), jnp.int32)
    params = unbox(jax.jit(cfg.make().init)(jax.random.key(0), tokens))
    assert choices(cfg.make(), params, tokens) == {}


def test_shares():
    choice = np.array([[[0, 1], [0, 2], [3, 1]]])
    np.testing.assert_allclose(shares(choice, 4), [[2 / 6, 2 / 6, 1 / 6, 1 / 6]])
    by_class = shares(choice, 4, np.array([[1, 1, -1]]), 2)
    np.testing.assert_allclose(by_class, [[0, 0, 0, 0], [0.5, 0.25, 0.25, 0]])


def test_byte_classes():
    text = np.frombuffer("aZ_é 9\n(=".encode(), np.uint8).astype(np.int32)
    named = [BYTE_CLASSES[c] for c in byte_classes(text)]
    assert named == ["letter"] * 5 + ["space", "digit", "space", "other", "other"]
    assert byte_classes(np.array([256])) == [-1]


def test_figures(tmp_path):
    even = np.full((3, 4), 0.25)
    plot_history([0, 10, 20], {"a": even, "b": even}).savefig(tmp_path / "history.png")
    plot_classes({0: even, 1: even}, ("x", "y", "z")).savefig(tmp_path / "classes.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("history.png", "classes.png"))
