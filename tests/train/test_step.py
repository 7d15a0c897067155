"""The pure step: losses, accumulation, slices, halting."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.data.base import Shard
from seqmodels.train.experiment import OptimConfig, TrainConfig
from seqmodels.train.metrics import flatten
from seqmodels.train.optim import make_optimiser, make_schedule
from seqmodels.train.state import TrainState
from seqmodels.train.step import Loss, gradients, make_eval_step, make_step, measure, predict
from tests.train.tiny import Counting, tiny_model

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=2)


def make_batch(size=8, **changes):
    iterator = Counting(**changes).make("train", batch_size=size, seed=1, shard=Shard())
    return jax.tree.map(jnp.asarray, next(iterator))


@pytest.fixture(scope="module")
def model():
    return tiny_model().make()


@pytest.fixture(scope="module")
def params(model):
    from seqmodels.sharding import unbox

    return unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))


def start(params):
    optimiser = make_optimiser(OPTIM, 20)
    copy = jax.tree.map(jnp.copy, params)
    return TrainState(copy, optimiser.init(copy), jnp.int32(0), jnp.zeros(2, jnp.uint32), jnp.zeros((), bool))


def run(model, params, batches, **changes):
    cfg = TrainConfig(steps=20, **changes)
    step = jax.jit(make_step(model, make_optimiser(OPTIM, 20), cfg, make_schedule(OPTIM, 20), slices=2))
    state, history = start(params), []
    for batch in batches:
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return state, history


def test_loss_is_the_masked_mean_of_token_losses(model, params):
    batch = make_batch()
    logits, _, _ = jax.jit(model.apply)(params, batch["tokens"], segment_ids=batch["segment_ids"])
    token = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
    expected = (token * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
    right = (jnp.argmax(logits, -1) == batch["targets"]) * batch["loss_mask"]
    _, history = run(model, params, [batch], accuracy=True)
    np.testing.assert_allclose(history[0]["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(history[0]["correct"], right.sum())
    for i in range(2):
        rows = batch["slices"] == i
        np.testing.assert_allclose(history[0]["slice/loss"][i], (token * batch["loss_mask"])[rows].sum(), rtol=1e-5)
        np.testing.assert_allclose(history[0]["slice/correct"][i], right[rows].sum())
        np.testing.assert_allclose(history[0]["slice/tokens"][i], batch["loss_mask"][rows].sum())


def test_accumulation_equals_the_whole_batch(model, params):
    """Micro-batches differ in how many tokens count, so weighting them equally would fail."""
    batch = make_batch()
    batch["loss_mask"] = batch["loss_mask"].at[:2].set(0.0)
    whole, one = run(model, params, [batch] * 3, accumulate=1)
    parts, four = run(model, params, [batch] * 3, accumulate=4)
    for a, b in zip(one, four):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_gradients_accumulate_exactly(model, params):
    batch = make_batch()
    batch["loss_mask"] = batch["loss_mask"].at[:3].set(0.0)
    make = lambda k: jax.jit(lambda p, b: gradients(model, p, b, Loss(slices=2), k)[0])(params, batch)  # noqa: E731
    for a, b in zip(jax.tree.leaves(make(1)), jax.tree.leaves(make(4))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_auxiliary_losses_are_added(params):
    """``loss/…`` of the model changes the gradient by its own gradient, whatever the accumulation."""
    inner = tiny_model().make()

    class WithAux:
        cfg = inner.cfg

        def apply(self, p, *args, **kwargs):
            hidden, state, _ = inner.apply(p, *args, **kwargs)
            return hidden, state, {"loss/weight": 3.0 * jnp.sum(p["params"]["embedding"]), "stat/one": jnp.ones(())}

        readout, asked = staticmethod(inner.readout), staticmethod(inner.asked)

    batch = make_batch()
    plain = jax.jit(lambda p, b: gradients(inner, p, b, Loss(), 1)[0])(params, batch)
    for k in (1, 2):
        grads, metrics = jax.jit(lambda p, b, k=k: gradients(WithAux(), p, b, Loss(), k))(params, batch)  # pyright: ignore
        difference = grads["params"]["embedding"] - plain["params"]["embedding"]
        np.testing.assert_allclose(difference, 3.0, rtol=1e-4)
        np.testing.assert_allclose(metrics["stat/one"], 1.0)
        np.testing.assert_allclose(metrics["loss/weight"], 3.0 * params["params"]["embedding"].sum(), rtol=1e-4)


def test_smoothing_and_z_loss_reach_the_loss(model, params):
    batch = make_batch()
    value = lambda **c: float(jax.jit(lambda: measure(model, params, batch, Loss(**c))[0]["loss"])())  # noqa: E731
    plain, smooth, z = value(), value(label_smoothing=0.1), value(z_loss=1e-2)
    assert abs(smooth - plain) > 1e-4
    assert z > plain


def test_predictions_in_blocks(monkeypatch):
    from seqmodels.train import step

    monkeypatch.setattr(step, "ACCURACY_BLOCK", 6)
    hidden = jax.random.normal(jax.random.key(0), (2, 7, 4))
    head = jax.random.normal(jax.random.key(1), (9, 4))
    np.testing.assert_array_equal(predict(hidden, head), jnp.argmax(hidden @ head.T, -1))


def test_a_bad_step_changes_nothing_for_good(model, params):
    good = make_batch()
    bad = {**good, "loss_mask": good["loss_mask"].at[0, 0].set(jnp.nan)}
    before, _ = run(model, params, [good])
    after, history = run(model, params, [good, bad, good])
    assert [bool(m["halted"]) for m in history] == [False, True, True]
    for a, b in zip(jax.tree.leaves(before._replace(halted=after.halted)), jax.tree.leaves(after)):
        np.testing.assert_array_equal(a, b)
    assert int(after.step) == 1


def test_evaluation_sums_micro_batches(model, params):
    batch = make_batch()
    whole = jax.jit(make_eval_step(model, 1, 2))(params, batch)
    parts = jax.jit(make_eval_step(model, 4, 2))(params, batch)
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-5, err_msg=name)


def test_slices_per_token_and_names(model, params):
    batch = make_batch()
    per_row = jax.jit(make_eval_step(model, 1, 2))(params, batch)
    batch["slices"] = jnp.broadcast_to(batch["slices"][:, None], batch["tokens"].shape)
    per_token = jax.jit(make_eval_step(model, 1, 2))(params, batch)
    np.testing.assert_allclose(per_row["slice/loss"], per_token["slice/loss"], rtol=1e-6)
    flat = flatten(jax.device_get(per_row), ("even", "odd"))
    assert {"slice/even/loss", "slice/odd/accuracy", "accuracy"} <= flat.keys()
    held = per_row["slice/tokens"][0]
    np.testing.assert_allclose(flat["slice/even/loss"], per_row["slice/loss"][0] / held, rtol=1e-6)


def test_configs_name_what_is_wrong():
    from seqmodels.errors import UserError

    for make, parts in (
        (lambda: TrainConfig(batch_size=6, accumulate=4), ["train.batch_size=6", "train.accumulate=4"]),
        (lambda: TrainConfig(steps=0), ["train.steps=0", "--train.steps"]),
        (lambda: OptimConfig(b2=1.0), ["optim.b2=1.0", "below 1"]),
        (lambda: dataclasses.replace(OptimConfig(), learning_rate=-1.0), ["optim.learning_rate=-1.0", "positive"]),
    ):
        with pytest.raises(UserError) as caught:
            make()
        assert all(part in str(caught.value) for part in parts), caught.value
