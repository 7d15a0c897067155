"""The language model over every mixer: state, scanning, rematerialisation, precision, auxiliary outputs."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.errors import UserError
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers import AttentionConfig, GatedDeltaNetConfig, HGRNConfig, Mamba2Config
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.models.stack import reduce_aux

MLP = MLPConfig(hidden=24)
DELTA = BlockConfig(GatedDeltaNetConfig.tiny(), MLP)
LOCAL = BlockConfig(dataclasses.replace(AttentionConfig.tiny(), window=5), MLP)
HGRN = BlockConfig(HGRNConfig.tiny(), MLP)
MAMBA = BlockConfig(Mamba2Config.tiny(), mlp=None)
BASE = LMConfig(dim=32, depth=7, vocab_size=40, pattern=(DELTA, HGRN, LOCAL))  # two periods and a remainder


@pytest.fixture(scope="module")
def hybrid():
    """Model, parameters, tokens [2,17] and its logits."""
    model = BASE.make()
    tokens = jax.random.randint(jax.random.key(1), (2, 17), 0, BASE.vocab_size)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(2), p.shape), params)
    return model, params, tokens, jax.jit(model.apply)(params, tokens)[0]


def test_logits_are_float32_and_training_builds_no_state(hybrid):
    model, params, tokens, logits = hybrid
    assert logits.shape == (2, 17, 40) and logits.dtype == jnp.float32
    assert jax.eval_shape(model.apply, params, tokens)[1] is None


@pytest.mark.parametrize("cut", [1, 9, 16])
def test_prefill_then_continue_equals_whole(hybrid, cut):
    model, params, tokens, logits = hybrid
    apply = jax.jit(model.apply)
    first, state, _ = apply(params, tokens[:, :cut], model.init_state(2, max_length=32))
    second, state, _ = apply(params, tokens[:, cut:], state)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), logits, rtol=2e-5, atol=2e-5)
    zero = model.init_state(2, max_length=32)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), zero)


def test_token_by_token_equals_whole(hybrid):
    model, params, tokens, logits = hybrid

    def step(state, token):
        out, state, _ = model.apply(params, token[:, None], state)
        return state, out[:, 0]

    _, out = jax.jit(lambda s, t: jax.lax.scan(step, s, t))(model.init_state(2, max_length=32), tokens.T)
    np.testing.assert_allclose(out.swapaxes(0, 1), logits, rtol=2e-5, atol=2e-5)


def test_packed_documents_equal_separate_runs(hybrid):
    model, params, tokens, _ = hybrid
    ids = jnp.array([[1] * 6 + [2] * 8 + [0] * 3, [0] * 2 + [4] * 1 + [2] * 14])
    apply = jax.jit(model.apply)
    packed = apply(params, tokens, None, ids)[0]
    for row, start, stop in ((0, 6, 14), (1, 2, 3), (1, 3, 17)):
        alone = apply(params, tokens[row : row + 1, start:stop])[0]
        np.testing.assert_allclose(packed[row, start:stop], alone[0], rtol=2e-5, atol=2e-5)


def loss_and_gradient(cfg, params, tokens):
    model = cfg.make()
    return jax.jit(jax.value_and_grad(lambda p: jnp.square(model.apply(p, tokens)[0]).mean()))(params)


@pytest.fixture(scope="module")
def expected_gradient(hybrid):
    _, params, tokens, _ = hybrid
    return loss_and_gradient(BASE, params, tokens)


@pytest.mark.parametrize("change", [{"remat": "full"}, {"remat": "dots"}, {"scan": False}], ids=str)
def test_how_it_is_compiled_changes_no_number(hybrid, expected_gradient, change):
    _, params, tokens, _ = hybrid
    actual = loss_and_gradient(dataclasses.replace(BASE, **change), params, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected_gradient)


def test_bfloat16_computes_close_to_float32_with_float32_parameters(hybrid):
    _, params, tokens, logits = hybrid
    model = dataclasses.replace(BASE, dtype="bfloat16").make()
    half = jax.jit(model.apply)(params, tokens)[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), tokens))} == {
        jnp.dtype("float32")
    }
    assert jnp.abs(half - logits).max() < 0.05 * jnp.abs(logits).max()


def test_head_matches_the_logits(hybrid):
    model, params, tokens, logits = hybrid
    targets = jnp.roll(tokens, -1, axis=1)
    hidden = jax.jit(lambda params: model.apply(params, tokens, method="hidden")[0])(params)
    loss = ops.linear_cross_entropy(hidden, model.head(params), targets)
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_untied_head_and_softcap():
    cfg = dataclasses.replace(BASE, depth=1, pattern=(MAMBA,), tie_embeddings=False, softcap=0.01)
    model, tokens = cfg.make(), jnp.ones((1, 5), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    assert model.head(params).shape == (40, 32)
    assert jnp.abs(jax.jit(model.apply)(params, tokens)[0]).max() <= 0.01


def test_aux_losses_add_up_and_statistics_average():
    parts = [{"loss/a": jnp.array([1.0, 2.0]), "stat/b": jnp.array([1.0, 3.0])}, {"stat/b": jnp.array(5.0)}, {}]
    assert {k: float(v) for k, v in reduce_aux(parts).items()} == {"loss/a": 3.0, "stat/b": 3.0}


def test_flops_follow_the_parameters_of_a_matmul_model():
    """With a short context, forward FLOPs per token are twice the parameters used in matmuls."""
    cfg = LMConfig(dim=256, depth=2, vocab_size=512, pattern=(BlockConfig(AttentionConfig(num_heads=4), MLP),))
    shapes = jax.eval_shape(cfg.make().init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert cfg.flops_per_token(1) == pytest.approx(2 * parameters, rel=0.02)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dim": 0}, "model.dim=0"),
        ({"depth": 0}, "model.depth=0"),
        ({"pattern": ()}, "model.pattern"),
        ({"vocab_size": 0}, "model.vocab_size=0"),
        ({"softcap": -1.0}, "model.softcap=-1.0"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(BASE, **change)
