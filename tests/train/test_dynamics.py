"""Training of AL-RNNs: seeds are independent, a run resumes exactly, and what scored best is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.data.dynamics import Lorenz63
from seqmodels.errors import UserError
from seqmodels.models.alrnn import ALRNNConfig
from seqmodels.train import dynamics
from seqmodels.train.dynamics import DynamicsConfig, free_run, keep_best, start, train

FLOW = Lorenz63(train_rows=400, valid_rows=50, test_rows=50, transient=100, gap=10)
windows = jax.jit(dynamics.windows, static_argnums=0)
CONFIG = DynamicsConfig(
    ALRNNConfig(5, 1), FLOW, interval=3, window=8, epochs=4, batches_per_epoch=25, batch_size=4,
    learning_rate=1e-2, evaluate_every=2, free_run=20, discard=5, seeds=(0, 7),
)  # fmt: skip


def spread(rows):
    return float(np.abs(rows.std(0) - 1).mean())


@pytest.fixture(scope="module")
def trained():
    return train(CONFIG, spread)


def test_an_interrupted_run_comes_to_the_same_numbers(trained, tmp_path):
    calls = []

    def once(rows):
        calls.append(len(rows))
        if len(calls) > 3:  # in the middle of the second scoring
            raise KeyboardInterrupt
        return spread(rows)

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, once, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [dynamics.STATE]
    resumed = train(CONFIG, spread, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, trained)
    jax.tree.map(np.testing.assert_array_equal, train(CONFIG, spread, tmp_path), trained)
    with pytest.raises(UserError, match="another config"):
        train(dataclasses.replace(CONFIG, noise=0.1), spread, tmp_path)


def test_seeds_do_not_know_each_other(trained):
    alone = train(dataclasses.replace(CONFIG, seeds=(7,)), spread)
    for name, array in alone.params["params"].items():
        np.testing.assert_allclose(array[0], trained.params["params"][name][1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(trained.params["params"]["W"][0], trained.params["params"]["W"][1])


def test_training_lowers_the_loss(trained):
    first = start(CONFIG, jnp.stack([jax.random.key(seed) for seed in CONFIG.seeds])).params
    batch = windows(CONFIG, jnp.asarray(FLOW.series("train"), jnp.float32), jax.random.key(3))
    model = CONFIG.model.make()
    loss = jax.jit(jax.vmap(lambda p: jnp.mean((model.apply(p, batch, CONFIG.interval) - batch[:, 1:]) ** 2)))
    assert (loss(trained.params) < 0.8 * loss(first)).all()


def test_the_best_weights_are_kept(trained):
    worse = keep_best(trained, np.asarray([np.inf, -1.0], np.float32))
    for name, new in worse.best["params"].items():
        np.testing.assert_array_equal(new[0], trained.best["params"][name][0])
        np.testing.assert_array_equal(new[1], trained.params["params"][name][1])
    np.testing.assert_array_equal(worse.score, [trained.score[0], -1.0])
    assert np.isfinite(trained.score).all() and (trained.epoch == CONFIG.epochs).all()


def test_windows_are_of_the_series_with_fresh_noise():
    series = jnp.asarray(FLOW.series("train"), jnp.float32)
    quiet = dataclasses.replace(CONFIG, noise=0.0)
    cut = windows(quiet, series, jax.random.key(0))
    assert cut.shape == (4, 9, 3)
    for window in cut:
        start = int(jnp.abs(series - window[0]).sum(1).argmin())
        np.testing.assert_array_equal(window, series[start : start + 9])
    noisy = windows(CONFIG, series, jax.random.key(0)) - cut
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.3)
    shortest = dataclasses.replace(quiet, window=399, batch_size=2)
    np.testing.assert_array_equal(windows(shortest, series, jax.random.key(0)), jnp.stack([series] * 2))


def test_a_free_run_leaves_out_what_is_discarded(trained):
    first = jnp.asarray(FLOW.series("valid")[:1], jnp.float32)
    short = free_run(CONFIG, trained.best, first)
    long = free_run(dataclasses.replace(CONFIG, discard=0, free_run=25), trained.best, first)
    assert short.shape == (2, 20, 5)
    np.testing.assert_allclose(short, long[:, 5:], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"window": 400}, {"epochs": 3}, {"seeds": ()}, {"seeds": (1, 1)}, {"batch_size": 0}], ids=str
)
def test_bad_configs_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        dataclasses.replace(CONFIG, **wrong)
