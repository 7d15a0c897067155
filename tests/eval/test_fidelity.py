"""Memory fidelity where it is known exactly, and on a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import fidelity
from eval.base import batches, discover
from eval.fidelity import Fidelity, layer_fidelity, layers, token_fidelity
from seqmodels.data.mqar import MQAR
from seqmodels.mixers import HGRNConfig, LinearAttentionConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sharding import unbox


def test_tokens_of_a_decaying_recurrence():
    """``h_t = a h_{t-1} + x_t`` on white x: the best linear guess of x_t correlates by ``a^Δ sqrt(1 - a²)``."""
    a, rng = 0.8, np.random.default_rng(0)
    x = rng.standard_normal((16, 500, 64))
    h, rows = np.zeros((16, 64)), []
    for t in range(500):
        h = a * h + x[:, t]
        rows.append(h)
    found = token_fidelity(x, np.stack(rows, axis=1), [0, 1, 2, 4])
    for lag, value in found.items():
        assert value == pytest.approx(a**lag * np.sqrt(1 - a**2), abs=0.03), lag
    assert token_fidelity(x, x, [0])[0] == pytest.approx(1, abs=1e-3)
    assert abs(token_fidelity(x, x, [3])[3]) < 0.05


def test_layers_that_add_noise():
    """After G layers that add noise of variance s² to a unit signal, ``1 / (1 + G s²)`` of it is left."""
    rng = np.random.default_rng(1)
    hidden = [rng.standard_normal((8, 200, 4))]
    for _ in range(4):
        hidden.append(hidden[-1] + 0.5 * rng.standard_normal(hidden[0].shape))
    assert layer_fidelity(hidden[0], hidden[0]) == pytest.approx(1, abs=1e-3)
    for gap in range(1, 5):
        assert layer_fidelity(hidden[0], hidden[gap]) == pytest.approx(1 / (1 + gap / 4), abs=0.06), gap
    assert abs(layer_fidelity(hidden[0], rng.standard_normal((8, 200, 3)))) < 0.05


def test_padding_counts_nowhere_and_documents_stand_apart():
    """Garbage at padding changes nothing; distances are those without it, and none reaches into another document."""
    rng = np.random.default_rng(3)
    x, h = rng.standard_normal((6, 20, 3)), rng.standard_normal((6, 20, 5))
    h[:, 2:, :3] += x[:, :-2]
    ids = np.repeat([[1] * 8 + [2] * 12], 6, axis=0)
    expected = token_fidelity(x, h, [0, 2, 9], segment_ids=ids), layer_fidelity(x, h)
    wide = np.insert(np.arange(20), [5, 8, 20], [-1, -1, -1])  # one padding token within, between and behind
    garbage = 1e3 * rng.standard_normal((7, 23, 5))
    put = lambda a: np.where((wide >= 0)[:, None], a[:, wide], garbage[:6, :, : a.shape[2]])  # noqa: E731
    rows = lambda a: np.concatenate([put(a), garbage[6:, :, : a.shape[2]]])  # noqa: E731  (and a row of padding)
    padded = np.concatenate([np.where(wide >= 0, ids[:, wide], 0), np.zeros((1, 23), int)])
    found = token_fidelity(rows(x), rows(h), [0, 2, 9], segment_ids=padded)
    assert found == pytest.approx(expected[0], abs=1e-12)
    assert layer_fidelity(rows(x), rows(h), segment_ids=padded) == pytest.approx(expected[1], abs=1e-12)
    with pytest.raises(ValueError, match="lag=12 does not fit sequences of 12 tokens; give 0 to 11"):
        token_fidelity(rows(x), rows(h), [12], segment_ids=padded)
    mixed = np.repeat([[1] * 5 + [2] * 15], 6, axis=0)
    jump = h.copy()
    jump[:, 5:7] = rng.standard_normal((6, 2, 5))  # what was two tokens before them is another document
    assert token_fidelity(x, jump, [2], segment_ids=mixed) == token_fidelity(x, h, [2], segment_ids=mixed)
    assert token_fidelity(x, jump, [2]) != token_fidelity(x, h, [2])


@pytest.fixture(scope="module")
def trained():
    """Two kinds of layers in a scanned period and a remainder."""
    pattern = (BlockConfig(HGRNConfig(), mlp=None), BlockConfig(LinearAttentionConfig(num_heads=2), mlp=None))
    model = LMConfig(dim=8, depth=3, pattern=pattern, vocab_size=64).make()
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 64, (4, 16)), jnp.int32)
    return model, unbox(jax.jit(model.init)(jax.random.key(0), tokens)), tokens


def test_layers_of_a_model(trained):
    model, params, tokens = trained
    found = layers(model, params, tokens)
    assert [layer.shape for layer in found] == [(4, 16, 8)] * 4
    np.testing.assert_array_equal(found[0], params["params"]["embedding"][tokens])
    last = found[-1] / np.sqrt(np.mean(found[-1] ** 2, axis=-1, keepdims=True) + 1e-6)
    hidden = jax.jit(lambda params, tokens: model.apply(params, tokens, method="hidden")[0])(params, tokens)
    np.testing.assert_allclose(last * params["params"]["backbone"]["final_norm"]["scale"], hidden, rtol=1e-4, atol=1e-5)


def test_the_task(trained):
    model, params, _ = trained
    data = MQAR(vocab_size=64, seq_len=16, num_pairs=(2,))
    results = Fidelity(lags=(0, 2, 99), batch_size=8, limit=2).run(model, params, data)
    assert set(results) == {"fidelity/token@0", "fidelity/token@2", "fidelity/layer@1", "fidelity/layer@2"}
    assert 0.5 < results["fidelity/token@0"] <= 1 + 1e-6
    assert results["fidelity/layer@1"] <= 1 and discover()["fidelity"] is Fidelity


def test_the_task_leaves_padding_out(trained, monkeypatch):
    model, params, _ = trained
    data, task = MQAR(vocab_size=64, seq_len=16, num_pairs=(2,)), Fidelity(lags=(0, 3, 17), batch_size=8, limit=1)
    plain = task.run(model, params, data)

    def padded(*arguments):
        for batch in batches(*arguments):
            wide = {name: np.pad(batch[name], ((0, 0), (2, 3))) for name in ("tokens", "segment_ids")}
            yield wide | {"tokens": np.where(wide["segment_ids"] == 0, 9, wide["tokens"])}

    monkeypatch.setattr(fidelity, "batches", padded)
    assert task.run(model, params, data) == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: token_fidelity(x, x, [5]), "lag=5 does not fit sequences of 5 tokens"),
        (lambda x: token_fidelity(x[:1], x[:1], [0]), "at least 2 sequences"),
        (lambda x: layer_fidelity(x, x[:, 1:]), "expected"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 5, 3)))
