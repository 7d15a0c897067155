"""Sliding-window perplexity: every target counts once, and the numbers are the model's."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.quickstart import get_config
from eval import perplexity
from eval.base import Scores
from eval.perplexity import NEW, PerplexityConfig, bucketed, cut
from eval.recall import RecallConfig
from seqmodels.data.mqar import MQAR
from seqmodels.data.text import TextFiles
from seqmodels.errors import UserError
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import TrainConfig


@functools.cache
def tiny(vocab_size=264):
    pattern = (BlockConfig(AttentionConfig(num_heads=2)),)
    model = LMConfig(dim=16, depth=1, pattern=pattern, vocab_size=vocab_size, init_std=0.3).make()
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))


@pytest.fixture
def corpus(tmp_path):
    random = np.random.default_rng(0)
    for i, size in enumerate([200, 333, 64, 65, 400, 17, 1000, 250]):
        (tmp_path / f"{i}.txt").write_bytes(bytes(random.integers(97, 123, size, dtype=np.uint8)))
    return TextFiles(paths=(str(tmp_path),), seq_len=64, test_fraction=0.4, valid_fraction=0.1)


@pytest.mark.parametrize(("length", "stride"), [(64, 64), (64, 32), (64, 1), (64, 63), (16, 5)])
@pytest.mark.parametrize("pairs", [1, 15, 16, 17, 63, 64, 65, 200])
def test_windows_count_every_target_once(length, stride, pairs):
    ids = np.random.default_rng(0).integers(1, 1000, pairs + 1)
    seen = []
    for number, row in enumerate(cut(ids, length, stride)):
        size = int(row["segment_ids"].sum())
        start = number * stride
        assert row["tokens"][:size].tolist() == ids[start : start + size].tolist()
        assert row["targets"][:size].tolist() == ids[start + 1 : start + size + 1].tolist()
        assert not row[NEW][size:].any() and row["loss_mask"].sum() == size
        counted = np.flatnonzero(row[NEW])
        assert number == 0 or counted.min() >= length - stride  # enough to look back on
        seen += (start + counted).tolist()
    assert seen == list(range(pairs))


def test_totals_are_sums_over_the_text(corpus, monkeypatch):
    """With a known loss for every target the totals are known, whatever the windows."""

    def known(model, params, batch):
        return Scores((batch["targets"] % 7).astype(np.float32) * batch["loss_mask"], batch["targets"] % 2 == 0)

    monkeypatch.setattr(perplexity, "score", known)
    text = np.frombuffer(corpus.bytes_of("test"), np.uint8)
    assert len(text) > 500
    for stride in (1, 7, 64):
        results = PerplexityConfig(stride=stride, batch_size=3).run(None, None, corpus)  # type: ignore[arg-type]
        assert results["perplexity/tokens"] == results["perplexity/bytes"] == len(text)
        assert results["perplexity/loss"] == pytest.approx((text % 7).mean())
        assert results["perplexity/bits_per_byte"] == pytest.approx((text % 7).mean() / math.log(2))
        assert results["perplexity/perplexity"] == pytest.approx(math.exp((text % 7).mean()))
        assert results["perplexity/accuracy"] == pytest.approx((text % 2 == 0).mean())


def test_agrees_with_reading_the_documents_directly(corpus):
    model, params = tiny()
    results = PerplexityConfig(length=64, stride=64, batch_size=4, buckets=4).run(model, params, corpus)
    logits = jax.jit(lambda tokens: model.apply(params, tokens)[0])
    total, by_position = 0.0, [[] for _ in range(64)]
    for document in corpus.documents()["test"]:
        ids = corpus.tokenizer.document(document.text.decode())
        for start in range(0, len(ids) - 1, 64):
            window = np.zeros((1, 64), np.int32)
            piece = ids[start : start + 65]
            window[0, : len(piece) - 1] = piece[:-1]
            loss = -np.asarray(jax.nn.log_softmax(logits(window)[0]))[np.arange(len(piece) - 1), piece[1:]]
            total += loss.sum(dtype=np.float64)
            for position, value in enumerate(loss):
                by_position[position].append(value)
    assert results["perplexity/bits_per_byte"] == pytest.approx(
        total / math.log(2) / len(corpus.bytes_of("test")), rel=1e-5
    )
    last = np.concatenate(by_position[48:])
    assert results["perplexity/loss@48-63"] == pytest.approx(last.mean(), rel=1e-5)


def test_max_tokens_stops_between_documents(corpus):
    model, params = tiny()
    task = PerplexityConfig(max_tokens=1, batch_size=4)
    first = corpus.documents()["test"][0]
    results = task.run(model, params, corpus)
    assert results["perplexity/tokens"] == results["perplexity/bytes"] == len(first.text)


def test_other_data_are_scored_row_by_row():
    model, params = tiny(64)
    data = MQAR(vocab_size=64, seq_len=16, num_pairs=(2, 3), heldout_examples=10)
    results = PerplexityConfig(batch_size=4).run(model, params, data)
    asked = sum(int(row["loss_mask"].sum()) for row in map(data.rows("test", 0).__getitem__, range(10)))
    assert results["perplexity/tokens"] == asked
    assert "perplexity/bits_per_byte" not in results


def test_the_window_is_that_of_the_report_unless_it_is_given():
    run = get_config()
    assert PerplexityConfig().of_run(run).length == run.train.report_length == 512
    assert PerplexityConfig(length=64).of_run(run).length == 64
    plain = dataclasses.replace(run, train=TrainConfig())
    assert PerplexityConfig().of_run(plain).length is None
    assert RecallConfig().of_run(run) == RecallConfig()


def test_buckets_cover_all_positions():
    by_position = np.stack([np.arange(10.0) * 2, np.full(10, 2.0)])
    found = bucketed(by_position, 4)
    assert list(found) == ["loss@0-1", "loss@2-4", "loss@5-6", "loss@7-9"]
    assert found["loss@2-4"] == 3.0
    assert list(bucketed(by_position[:, :2], 8)) == ["loss@0-0", "loss@1-1"]
    assert list(bucketed(np.array([[1.0, 0.0], [1.0, 0.0]]), 2)) == ["loss@0-0"]  # nothing was counted at position 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: PerplexityConfig(stride=0), "perplexity.stride=0"),
        (lambda: PerplexityConfig(max_tokens=-1), "perplexity.max_tokens=-1"),
        (lambda: PerplexityConfig(length=8, stride=9).run(*tiny(), MQAR()), "stride=9 exceeds the window of 8"),
    ],
)
def test_bad_options(task, message):
    with pytest.raises(UserError, match=message):
        task()


def test_unknown_split(corpus):
    with pytest.raises(UserError, match="split='tset'"):
        PerplexityConfig(split="tset").run(*tiny(), corpus)
