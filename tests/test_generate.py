"""Sampling, generation with carried state, and left padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.data.tokenizer import ByteTokenizer
from seqmodels.errors import UserError
from seqmodels.generate import CHUNK, generate, generate_text, pad_left, stream
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.base import discover
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.mixers.hgrn import HGRNConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sampling import GREEDY, SamplingConfig, filter_logits, keep_top_k, keep_top_p, sample
from seqmodels.sharding import unbox

# Sampling

LOGITS = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))


def kept(logits):
    return np.flatnonzero(np.isfinite(np.asarray(logits))).tolist()


def test_top_k_keeps_the_largest():
    assert [kept(keep_top_k(LOGITS, k)) for k in (1, 2, 4, 9)] == [[0], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(("p", "want"), [(0.01, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.91, 4), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_of_enough_probability(p, want):
    assert kept(keep_top_p(LOGITS, p)) == list(range(want))
    assert kept(keep_top_p(LOGITS[::-1], p)) == list(range(4 - want, 4))


def test_filters_work_on_batches_and_compose():
    both = jnp.stack([LOGITS, LOGITS[::-1]])
    out = filter_logits(both, SamplingConfig(temperature=0.5, top_k=3, top_p=0.7))
    assert [kept(row) for row in out] == [[0, 1][: len(kept(out[0]))], kept(out[1])]
    assert jnp.allclose(out[0, 0], 2 * LOGITS[0])


def test_sampling_follows_the_distribution():
    draw = jax.vmap(lambda key: sample(key, LOGITS, SamplingConfig(top_k=3)))
    counts = np.bincount(draw(jax.random.split(jax.random.key(0), 4000)), minlength=4) / 4000
    np.testing.assert_allclose(counts, np.array([0.5, 0.25, 0.15, 0]) / 0.9, atol=0.03)


def test_greedy_needs_no_luck():
    assert sample(jax.random.key(0), LOGITS, GREEDY) == 0
    assert sample(jax.random.key(1), LOGITS[::-1], SamplingConfig(temperature=0)).dtype == jnp.int32


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_sampling_options(bad):
    with pytest.raises(UserError, match=f"{next(iter(bad))}=.*set --"):
        SamplingConfig(**bad)


# Generation

VOCAB = 31
PROMPTS = [[3, 14, 15, 9, 2, 6, 5], [7], [30, 1, 8]]


@functools.cache
def build(*mixers, depth=2):
    pattern = tuple(BlockConfig(mixer) for mixer in mixers)
    model = LMConfig(dim=32, depth=depth, pattern=pattern, vocab_size=VOCAB, tie_embeddings=False).make()
    return model, large_parameters(model)


def large_parameters(model):
    """Random parameters so large that the whole context matters to the next token."""
    random = np.random.default_rng(0)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * random.normal(size=leaf.shape), leaf.dtype), shapes)


HYBRID = (GatedDeltaNetConfig.tiny(), AttentionConfig(num_heads=4, num_kv_heads=2, window=4))
MODELS = {name: (cls.tiny(),) for name, cls in discover().items()} | {"hybrid with a window": HYBRID}


@pytest.mark.parametrize("name", MODELS)
def test_batched_prompts_continue_as_alone(name):
    """Left padding is inert, and decoding with the carried state equals reading everything again."""
    model, params = build(*MODELS[name])
    made = generate(model, params, PROMPTS, max_new_tokens=6)
    reread = jax.jit(lambda tokens, ids: model.apply(params, tokens, segment_ids=ids)[0])
    for prompt, new in zip(PROMPTS, made, strict=True):
        whole = prompt + new
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(whole)] = whole
        guesses = np.argmax(reread(padded, (np.arange(16) < len(whole))[None].astype(np.int32))[0], axis=-1)
        assert guesses[len(prompt) - 1 : len(whole) - 1].tolist() == new


def test_the_context_matters():
    """Otherwise the tests here would show nothing."""
    model, params = build(*HYBRID)
    made = generate(model, params, [[1, 2, 3, 9], [3, 2, 1, 9], [9]], max_new_tokens=6)
    assert made[0] != made[1] != made[2] != made[0]
    assert all(len(set(row)) > 2 for row in made)


def test_alone_or_together_the_same_tokens():
    model, params = build(*HYBRID)
    options = {"max_new_tokens": 20, "sampling": SamplingConfig(temperature=1.0, top_k=9), "seed": 5}
    together = generate(model, params, PROMPTS, **options)
    assert generate(model, params, PROMPTS[:1], **options) == together[:1]  # row i draws from a key of its own


def test_seed_decides():
    model, params = build(*HYBRID)
    run = lambda seed: generate(model, params, PROMPTS, max_new_tokens=8, sampling=SamplingConfig(), seed=seed)  # noqa: E731
    assert run(1) == run(1)
    assert run(1) != run(2)


def test_stream_adds_up():
    model, params = build(*HYBRID)
    pieces = list(stream(model, params, PROMPTS, max_new_tokens=CHUNK + 3))
    assert [piece.shape for piece in pieces] == [(3, CHUNK), (3, 3)]
    whole = generate(model, params, PROMPTS, max_new_tokens=CHUNK + 3)
    assert np.concatenate(pieces, axis=1).tolist() == whole


def test_stop_and_vocabulary():
    model, params = build(*HYBRID)
    free = generate(model, params, PROMPTS, max_new_tokens=12)
    stop = free[0][5]
    assert generate(model, params, PROMPTS, max_new_tokens=12, stop=stop)[0] == free[0][: free[0].index(stop)]
    few = generate(model, params, PROMPTS, max_new_tokens=12, sampling=SamplingConfig(), vocab_size=3)
    assert max(max(row) for row in few) < 3


def test_text_in_text_out():
    model = LMConfig(dim=32, depth=1, pattern=(BlockConfig(HGRNConfig()),)).make()
    params = large_parameters(model)
    texts = generate_text(model, params, ByteTokenizer(), ["def ", "ü"], max_new_tokens=5)
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)


def test_pad_left():
    tokens, ids = pad_left([[1, 2, 3], [4]])
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4]] and ids.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("prompts", "count", "message"),
    [
        ([], 4, "prompt"),
        ([[1], []], 4, "prompt='' holds no token"),
        ([[VOCAB]], 4, f"token id {VOCAB}, but model.vocab_size={VOCAB}"),
        ([[1]], 0, "max_new_tokens=0 must be at least 1"),
    ],
)
def test_bad_prompts(prompts, count, message):
    model, params = build(*HYBRID)
    with pytest.raises(UserError, match=message):
        generate(model, params, prompts, max_new_tokens=count)
