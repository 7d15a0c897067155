"""`linear_cross_entropy`: golden vectors, float64 oracle, memory, sharding, options and errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from seqmodels.ops.linear_cross_entropy import chunked, linear_cross_entropy
from seqmodels.ops.linear_cross_entropy.cases import CASES, Case
from tests.shared import golden, relative_error

SMALL = [case for case in CASES if not case.large]
GOLDEN = ["", "_smooth", "_softcap", "_zloss"]


def value_and_grads(args, bias, **options):
    """Loss and the gradients of hidden, embedding and bias (an empty tuple when there is none)."""
    hidden, embedding, targets = args

    def loss(hidden, embedding, bias):
        return linear_cross_entropy(hidden, embedding, targets, bias=bias, **options)

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(hidden, embedding, bias)
    return value, [g for g in grads if g is not None]


@pytest.mark.shared
@pytest.mark.parametrize("suffix", GOLDEN)
@pytest.mark.parametrize(("impl", "factor"), [("reference", 1), ("chunked", 5)])
def test_golden(suffix, impl, factor):
    arrays, attrs, tol = golden(f"ops/linear_cross_entropy{suffix}")
    args = [jnp.asarray(arrays[key]) for key in ("hidden", "weight", "labels")]
    bias = jnp.asarray(arrays["bias"])
    options = {key: attrs[key] for key in ("label_smoothing", "z_loss", "softcap") if key in attrs}
    loss, grads = value_and_grads(args, bias, impl=impl, chunk_size=48, **options)
    for name, value in zip(("loss", "dhidden", "dweight", "dbias"), (loss, *grads), strict=True):
        assert relative_error(value, arrays[name]) <= factor * tol[name], name
    nll = linear_cross_entropy(
        *args, bias=bias, reduction="none", impl=impl, chunk_size=48, softcap=options.get("softcap")
    )
    assert relative_error(nll, arrays["nll"]) <= factor * tol["nll"]


def oracle(hidden, embedding, targets, bias, label_smoothing, z_loss, softcap):
    """Loss and gradients with all logits in float64 numpy, and the derivative written out."""
    hidden, embedding = np.asarray(hidden, np.float64), np.asarray(embedding, np.float64)
    targets = np.asarray(targets)
    raw = hidden @ embedding.T + (0 if bias is None else np.asarray(bias, np.float64))
    z = raw if softcap is None else softcap * np.tanh(raw / softcap)
    lse = np.log(np.sum(np.exp(z - z.max(1, keepdims=True)), 1)) + z.max(1)
    kept = targets != -100
    want = np.full_like(z, label_smoothing / z.shape[1])
    want[np.arange(len(z)), np.where(kept, targets, 0)] += 1 - label_smoothing
    count = max(kept.sum(), 1)
    loss = np.sum((lse - np.sum(want * z, 1) + z_loss * lse**2) * kept) / count
    g = np.exp(z - lse[:, None]) * (1 + 2 * z_loss * lse)[:, None] - want
    g = g * (1 if softcap is None else 1 - (z / softcap) ** 2) * kept[:, None] / count
    return loss, [g.T @ hidden if i else g @ embedding for i in range(2)] + ([] if bias is None else [g.sum(0)])


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_float64_oracle(case):
    with jax.enable_x64(True):
        args, options = case.make(jax.random.key(0), jnp.float64)
        bias = options.pop("bias")
        numbers = [options[key] for key in ("label_smoothing", "z_loss", "softcap")]
        loss, grads = oracle(*args, bias, *numbers)
        for impl in ("reference", "chunked"):
            ours, ours_grads = value_and_grads(args, bias, impl=impl, **options)
            assert ours.dtype == jnp.float64
            assert relative_error(ours, loss) < 1e-12
            for mine, true in zip(ours_grads, grads, strict=True):
                assert relative_error(mine, true) < 1e-12


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_a_bias_of_minus_infinity_takes_an_entry_out(impl):
    """A whole block at the beginning, and one entry of another: as a vocabulary without them."""
    rng = np.random.default_rng(0)
    hidden, embedding = rng.standard_normal((5, 3), np.float32), rng.standard_normal((12, 3), np.float32)
    bias = np.where(np.isin(np.arange(12), [0, 1, 2, 3, 7]), -np.inf, 0.5).astype(np.float32)
    kept, targets = np.flatnonzero(np.isfinite(bias)), np.array([0, 1, 5, 6, 2])
    args = (hidden, embedding, jnp.asarray(kept[targets]))
    loss, grads = value_and_grads(args, bias, impl=impl, chunk_size=4, z_loss=1e-2)
    small = (hidden, embedding[kept], jnp.asarray(targets))
    want, (d_hidden, d_embedding, d_bias) = value_and_grads(small, bias[kept], impl="reference", z_loss=1e-2)
    assert relative_error(loss, want) < 1e-6 and relative_error(grads[0], d_hidden) < 1e-6
    for mine, true in ((grads[1], d_embedding), (grads[2], d_bias)):
        assert relative_error(mine[kept], true) < 1e-6 and not np.delete(mine, kept, axis=0).any()


def test_token_blocks_change_nothing(monkeypatch):
    case = next(case for case in SMALL if case.name == "ragged")
    args, options = case.make(jax.random.key(1))
    whole = value_and_grads(args, **options)
    monkeypatch.setattr(chunked, "LOGITS", 40 * 10)  # about ten of the 77 tokens at a time
    cut = value_and_grads(args, **options)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        assert relative_error(other, one) < 1e-6


def test_reductions_and_weights():
    (hidden, embedding, targets), _ = CASES[0].make(jax.random.key(2))
    hidden, targets = hidden.reshape(4, 16, -1), targets.reshape(4, 16).at[0, 3].set(-100)
    weights = jnp.ones((4, 16)).at[1, :5].set(0).at[2].set(0.25)
    call = functools.partial(linear_cross_entropy, hidden, embedding, targets)
    nll = call(reduction="none")
    assert nll.shape == (4, 16) and nll.dtype == jnp.float32
    assert nll[0, 3] == 0
    scaled = nll * weights
    np.testing.assert_allclose(call(reduction="none", weights=weights), scaled, rtol=1e-6)
    np.testing.assert_allclose(call(reduction="sum", weights=weights), scaled.sum(), rtol=1e-6)
    total = weights.at[0, 3].set(0).sum()
    np.testing.assert_allclose(call(weights=weights), scaled.sum() / total, rtol=1e-6)
    other = jnp.where(targets == -100, 7, targets)
    masked = linear_cross_entropy(hidden, embedding, other, weights=weights.at[0, 3].set(0))
    np.testing.assert_allclose(masked, call(weights=weights), rtol=1e-6)
    assert linear_cross_entropy(hidden, embedding, jnp.where(targets == -100, -1, targets), ignore_index=-1) == call()


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_all_ignored_and_empty(impl):
    (hidden, embedding, targets), _ = SMALL[1].make(jax.random.key(3))
    ignored = jnp.full_like(targets, -100)
    loss, grads = value_and_grads((hidden, embedding, ignored), None, impl=impl, chunk_size=40)
    assert loss == 0
    assert all(jnp.all(g == 0) for g in grads)
    assert linear_cross_entropy(hidden[:0], embedding, targets[:0], impl=impl, chunk_size=40) == 0


def test_ignored_tokens_have_no_gradient_and_others_sum_to_zero():
    case = SMALL[1]
    args, options = case.make(jax.random.key(4))
    _, (d_hidden, _, d_bias) = value_and_grads(args, **options)
    ignored = args[2] == -100
    assert jnp.all(d_hidden[ignored] == 0)
    assert jnp.all(jnp.any(d_hidden[~ignored] != 0, axis=-1))
    assert abs(jnp.sum(d_bias)) < 1e-6  # without cap and z-loss a token's logit gradients sum to 0


def test_unknown_target_is_loud():
    (hidden, embedding, targets), _ = SMALL[0].make(jax.random.key(5))
    assert jnp.isnan(linear_cross_entropy(hidden, embedding, targets.at[0].set(embedding.shape[0])))
    assert jnp.isnan(linear_cross_entropy(hidden, embedding, targets.at[0].set(-7)))


def test_bfloat16_inputs():
    args, options = SMALL[1].make(jax.random.key(6), jnp.bfloat16)
    exact = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in args]
    loss, grads = value_and_grads(args, **options)
    true, true_grads = value_and_grads(exact, options.pop("bias").astype(jnp.float32), impl="reference", **options)
    assert loss.dtype == jnp.float32
    assert relative_error(loss, true) < 1e-5  # the products of bfloat16 numbers are exact in float32
    for mine, wanted in zip(grads, true_grads, strict=True):
        assert mine.dtype == jnp.bfloat16
        assert relative_error(mine, wanted) < 1e-2


def test_memory_does_not_grow_with_the_vocabulary():
    tokens, dim, chunk = 512, 16, 256

    def temporaries(vocab):
        case = Case(name="memory", tokens=tokens, dim=dim, vocab=vocab)
        args = jax.eval_shape(lambda: case.make(jax.random.key(0))[0])
        call = functools.partial(linear_cross_entropy, chunk_size=chunk)
        grad = jax.jit(jax.value_and_grad(call, argnums=(0, 1)))
        analysis = grad.lower(*args).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    small, large = temporaries(2048), temporaries(32768)
    logits = 4 * tokens * 32768
    assert large < logits / 8, "the logits of all tokens are held"
    assert large - small < 4 * 32768, "temporaries grow with the vocabulary"


@pytest.mark.parametrize("vocab", [264, 512])
def test_sharded_tokens_and_vocabulary(vocab):
    case = Case(name="sharded", tokens=64, dim=32, vocab=vocab, bias=True, chunk_size=64, z_loss=0.01)
    (hidden, embedding, targets), options = case.make(jax.random.key(7))
    bias = options.pop("bias")
    single = value_and_grads((hidden, embedding, targets), bias, **options)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
        args = place(hidden, "data"), place(embedding, "tensor"), place(targets, "data")
        many = value_and_grads(args, place(bias, "tensor"), **options)
    for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(many), strict=True):
        assert relative_error(other, one) < 2e-6


def test_sharded_embedding_is_not_gathered():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        spec = lambda shape, *axes: jax.ShapeDtypeStruct(  # noqa: E731
            shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes))
        )
        targets = jax.ShapeDtypeStruct((64,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec("data")))
        call = jax.value_and_grad(functools.partial(linear_cross_entropy, chunk_size=64), argnums=(0, 1))
        compiled = jax.jit(call).lower(spec((64, 32), "data"), spec((512, 32), "tensor"), targets).compile()
    assert "all-gather" not in compiled.as_text()


BAD = {
    "hidden": {"hidden": jnp.zeros((3, 5))},
    "embedding": {"embedding": jnp.zeros((4,))},
    "targets": {"targets": jnp.zeros(2, jnp.int32)},
    "targets has dtype": {"targets": jnp.zeros(3)},
    "bias": {"bias": jnp.zeros(3)},
    "weights": {"weights": jnp.zeros(4)},
    "label_smoothing": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": -1.0},
    "softcap": {"softcap": 0.0},
    "reduction": {"reduction": "average"},
    "chunk_size": {"chunk_size": 0},
    "impl": {"impl": "chunk"},
}


@pytest.mark.parametrize("word", BAD)
def test_bad_input(word):
    good = {"hidden": jnp.zeros((3, 4)), "embedding": jnp.zeros((6, 4)), "targets": jnp.zeros(3, jnp.int32)}
    with pytest.raises(ValueError, match=word) as error:
        linear_cross_entropy(**{**good, **BAD[word]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("vocab", [32_000, 50_257, 50_304, 128_256, 151_936, 256_000])
def test_default_blocks_cover_known_vocabularies(vocab):
    lanes, blocks, rows = chunked._cut_vocabulary(vocab, None)
    assert lanes * rows <= chunked.ROWS
    assert 0 <= lanes * blocks * rows - vocab < 0.005 * vocab
    assert blocks * rows <= vocab, "a block holds padding alone"
