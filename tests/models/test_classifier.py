"""The classifier: what it pools, that it may read the future, and that it trains through the one loop."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eval.run
import seqmodels.generate
from seqmodels.config import from_json, override, to_json
from seqmodels.data.classification import labels
from seqmodels.data.listops import ListOps
from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.describe import describe
from seqmodels.errors import UserError
from seqmodels.mixers import AttentionConfig, GatedDeltaNetConfig, S4DConfig
from seqmodels.models import BlockConfig, ClassifierConfig, LMConfig
from seqmodels.runs import load_run
from seqmodels.sharding import MeshConfig, unbox
from seqmodels.train.experiment import CheckpointConfig, Experiment, LogConfig, OptimConfig, TrainConfig
from seqmodels.train.loop import fit
from seqmodels.train.metrics import read_metrics
from seqmodels.train.step import Loss, measure
from seqmodels.validate import validate

DELTA = BlockConfig(GatedDeltaNetConfig(num_heads=2, head_dim=4), mlp=None)
BOTH_WAYS = {
    "attention": BlockConfig(AttentionConfig(num_heads=2, bidirectional=True), mlp=None),
    "s4d": BlockConfig(dataclasses.replace(S4DConfig.tiny(), bidirectional=True), mlp=None),
}
DATA = ListOps(seq_len=16, lengths=(4, 16), max_depth=3, max_args=4)
TINY = ClassifierConfig(dim=16, depth=1, pattern=(BOTH_WAYS["attention"],), num_classes=10, vocab_size=16)
EXPERIMENT = Experiment(
    name="tiny",
    model=TINY,
    data=DATA,
    optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
    train=TrainConfig(steps=6, batch_size=8, eval_every=3, eval_batches=2, accuracy=True, accumulate=2),
    mesh=MeshConfig(data=1),
    checkpoint=CheckpointConfig(every=3),
    log=LogConfig(every=1),
)


def start(cfg, *inputs):
    model = cfg.make()
    return model, unbox(jax.jit(model.init)(jax.random.key(1), *inputs)), jax.jit(model.apply)


@pytest.mark.parametrize("pool", ["mean", "last", "cls"])
def test_padding_is_left_out(pool):
    """Continuous features, padded behind and in front."""
    block = BOTH_WAYS["attention"] if pool == "cls" else DELTA
    cfg = ClassifierConfig(dim=32, depth=2, pattern=(block,), num_classes=3, vocab_size=None, pool=pool)
    x = jax.random.normal(jax.random.key(0), (2, 9, 4))
    _, params, apply = start(cfg, x)
    logits, _ = apply(params, x)
    assert logits.shape == (2, 3)
    waste, real = jnp.full((2, 4, 4), 7.0), jnp.ones((2, 9), jnp.int32)
    for order in (1, -1):
        padded = jnp.concatenate([x, waste][::order], 1)
        ids = jnp.concatenate([real, jnp.zeros((2, 4), jnp.int32)][::order], 1)
        np.testing.assert_allclose(apply(params, padded, ids)[0], logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", BOTH_WAYS.values(), ids=BOTH_WAYS)
def test_the_future_is_read(block):
    """The first position's hidden state depends on the last input; a language model refuses such a mixer."""
    x = jax.random.normal(jax.random.key(0), (1, 6, 16))
    mixer = block.make_mixer(16)
    params = mixer.init(jax.random.key(1), x)
    jacobian = jax.jacobian(lambda x: mixer.apply(params, x)[0][0, 0])(x)[:, 0]  # pyright: ignore
    assert jnp.abs(jacobian).max(axis=(0, 2)).min() > 1e-7
    assert mixer.apply(params, x)[1] is None  # pyright: ignore
    with pytest.raises(UserError, match="bidirectional=True reads the future"):
        mixer.init_state(1)
    with pytest.raises(UserError, match="reads the future; expected causal mixers"):
        LMConfig(dim=16, depth=1, pattern=(block,))


def test_tokens_that_are_levels_are_numbers():
    cfg = dataclasses.replace(TINY, vocab_size=None, levels=5)
    tokens = jnp.array([[0, 4, 2, 1]])
    _, params, apply = start(cfg, tokens)
    np.testing.assert_allclose(apply(params, tokens)[0], apply(params, tokens[..., None] / 4)[0], rtol=1e-6)


def test_loss_is_the_mean_over_labels():
    """Training asks what `__call__` answers: cross entropy of the labels, whose sums are those of the slices."""
    batch = next(DATA.make("train", batch_size=6))
    batch["loss_mask"][0] = 0  # a row of padding
    model, params, apply = start(TINY, batch["tokens"])
    params["params"]["classifier"]["bias"] = jnp.arange(10.0) / 4
    logits, _ = apply(params, batch["tokens"], batch["segment_ids"])
    losses = -jax.nn.log_softmax(logits)[jnp.arange(6), labels(batch)]
    sums, _ = jax.jit(lambda p, b: measure(model, p, b, Loss(slices=4)))(params, batch)
    np.testing.assert_allclose(sums["loss"], losses[1:].sum(), rtol=1e-5)
    assert sums["tokens"] == 5 == sums["slice/tokens"].sum()
    assert sums["correct"] == (logits.argmax(1) == labels(batch))[1:].sum() == sums["slice/correct"].sum()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run that was stopped halfway by a shorter budget, and went on."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    half = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, steps=3))
    flat = dataclasses.replace(EXPERIMENT.optim, schedule="constant")
    fit(dataclasses.replace(half, optim=flat), directory)
    fit(dataclasses.replace(EXPERIMENT, optim=flat), directory, resume=True)
    return directory


def test_a_resumed_run_is_the_undisturbed_one(run_dir, tmp_path):
    flat = dataclasses.replace(EXPERIMENT.optim, schedule="constant")
    result = fit(dataclasses.replace(EXPERIMENT, optim=flat), tmp_path / "whole")
    curves = [[entry.get("loss") for entry in read_metrics(path)] for path in (run_dir, result.run_dir)]
    assert curves[0] == curves[1] and len([loss for loss in curves[0] if loss]) == 6
    for a, b in zip(jax.tree.leaves(load_run(run_dir).params), jax.tree.leaves(result.state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {"valid/accuracy", "valid/slice/MAX/accuracy"} <= result.metrics.keys()


def test_the_command_lines_know_classifiers(run_dir, capsys):
    assert eval.run.main(["--run", str(run_dir), "--tasks", "classification", "--classification.limit", "2"]) == 0
    assert "classification/accuracy@MAX" in capsys.readouterr().out
    report = json.loads((run_dir / "eval/classification.json").read_text())
    assert report["results"]["classification/rows"] == 64
    assert eval.run.main(["--run", str(run_dir), "--tasks", "perplexity"]) == 2
    assert capsys.readouterr().err == (
        "error: --tasks perplexity asks language models, but the run trained a classifier; use --tasks classification\n"
    )
    assert seqmodels.generate.main(["--run", str(run_dir), "--prompt", "a"]) == 2
    assert "trained a classifier, which continues nothing" in capsys.readouterr().err


def test_description():
    text = describe(EXPERIMENT)
    assert "tiny: [Attention] x 1, width 16, vocabulary 16, 10 classes" in text and "classifier/kernel" in text


def test_overrides_keep_the_kind_of_model():
    changed = override(EXPERIMENT, ["--model.dim", "32", "--model.pool", "cls"])
    assert changed.model == dataclasses.replace(TINY, dim=32, pool="cls")
    assert from_json(to_json(changed)) == changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": dataclasses.replace(TINY, num_classes=9)}, r"model.num_classes=9 is smaller than the 10 labels"),
        ({"model": dataclasses.replace(TINY, vocab_size=8)}, r"model.vocab_size=8 is smaller than the 15 tokens"),
        ({"model": dataclasses.replace(TINY, vocab_size=None, levels=9)}, r"model.levels=9 is smaller"),
        ({"data": StdlibCorpus(seq_len=8), "model": dataclasses.replace(TINY, vocab_size=264)}, "has no labels"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(EXPERIMENT, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "model.num_classes=0"),
        ({"levels": 1}, "model.levels=1"),
        ({"pool": "max"}, "model.pool='max'"),
        ({"pool": "cls", "pattern": (DELTA,)}, "causal mixers see nothing"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)
