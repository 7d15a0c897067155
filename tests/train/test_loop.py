"""The loop as a whole: what a run leaves behind, what it refuses, and how it ends."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.config import from_json
from seqmodels.data.tokenizer import ByteTokenizer
from seqmodels.errors import UserError
from seqmodels.sharding import MeshConfig, path_name, unbox
from seqmodels.train.checkpoint import hash_files, saved_steps
from seqmodels.train.diagnose import TrainingDiverged, first_bad
from seqmodels.train.evaluate import tokens_are_bytes
from seqmodels.train.experiment import CheckpointConfig, LogConfig, TrainConfig
from seqmodels.train.loop import fit, own_position
from seqmodels.train.metrics import MetricLog, read_metrics, truncate_metrics
from seqmodels.train.progress import Progress, duration, rate
from seqmodels.train.samples import sample_text, seed_of
from seqmodels.train.step import Loss
from tests.train.tiny import Counting, ParameterCount, tiny_experiment, tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory, own_cache):
    """A run, and its experiment: with a task, a profiler window and offline Weights & Biases."""
    experiment = tiny_experiment(
        eval=(ParameterCount(),), log=LogConfig(every=1, profile_at=3, profile_steps=1, wandb="offline")
    )
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    return fit(experiment, directory), experiment


def losses(run_dir):
    return {entry["step"]: entry["loss"] for entry in read_metrics(run_dir) if "loss" in entry}


def test_a_run_leaves_its_files(trained):
    result, experiment = trained
    assert from_json((result.run_dir / "config.json").read_text()) == experiment
    assert saved_steps(result.run_dir / "checkpoints") == [8, 12]
    assert (result.run_dir / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((result.run_dir / "profile").rglob("*.xplane.pb"))
    assert list((result.run_dir / "wandb").glob("offline-run-*/*.wandb"))


def test_metrics_of_a_run(trained):
    result, _ = trained
    curve = losses(result.run_dir)
    assert list(curve) == list(range(1, 13))
    assert curve[12] < curve[1] - 0.3
    held_out = [entry for entry in read_metrics(result.run_dir) if "valid/loss" in entry]
    assert [entry["step"] for entry in held_out] == [6, 12]
    assert held_out[1]["count/parameters"] == sum(leaf.size for leaf in jax.tree.leaves(result.state.params))
    assert {"valid/accuracy", "valid/slice/even/accuracy"} <= held_out[0].keys()
    assert result.metrics["loss"] == curve[12] and result.metrics["tokens_per_second"] > 0
    assert result.metrics["mfu"] > 0
    assert (result.step, result.stopped_by) == (12, None)


def test_a_run_is_never_overwritten(trained):
    result, experiment = trained
    before = hash_files(result.run_dir)
    with pytest.raises(UserError, match="holds a run already; use --resume"):
        fit(experiment, result.run_dir)
    other = dataclasses.replace(experiment, model=tiny_model(dim=32))
    with pytest.raises(UserError, match=r"params/backbone/.*float32\[16\] there and float32\[32\] here"):
        fit(other, result.run_dir, resume=True)
    assert hash_files(result.run_dir) == before


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        fit(tiny_experiment(), tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_resumes_on_another_mesh(tmp_path):
    """Six steps on one device, six on 2 x 2 x 2: the same losses as twelve on one device, within float tolerance."""
    plain = {
        "checkpoint": CheckpointConfig(every=6),
        "train": dataclasses.replace(tiny_experiment().train, eval_every=-1),
    }
    whole = tiny_experiment(**plain)
    fit(whole, tmp_path / "whole")
    first = fit(whole, tmp_path / "moved")
    shutil.rmtree(first.run_dir / "checkpoints" / "12")  # as if killed after step 6
    moved = dataclasses.replace(whole, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    result = fit(moved, tmp_path / "moved", resume=True)
    assert result.state.params["params"]["embedding"].sharding.num_devices == 8
    a, b = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert list(a) == list(b) == list(range(1, 13))
    np.testing.assert_array_equal([a[i] for i in range(1, 7)], [b[i] for i in range(1, 7)])
    np.testing.assert_allclose([a[i] for i in range(7, 13)], [b[i] for i in range(7, 13)], rtol=2e-5)


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    """Row 8*9+2 belongs to step 10; the checkpoint of step 8 stays, and none comes after it."""
    experiment = tiny_experiment(data=Counting(poisoned_row=8 * 9 + 2))
    with pytest.raises(TrainingDiverged) as caught:
        fit(experiment, tmp_path / "run")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("step 10", "input loss_mask", str(tmp_path / "run" / "checkpoints" / "8"), "optim.learning-rate"):
        assert part in message
    assert saved_steps(tmp_path / "run" / "checkpoints") == [4, 8]
    assert max(losses(tmp_path / "run")) == 9


@pytest.fixture(scope="module")
def model_and_batch():
    model = tiny_model().make()
    params = unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    return model, params, jax.tree.map(jnp.asarray, next(Counting().make("train", batch_size=2)))


def test_the_first_bad_tensor_is_named(model_and_batch):
    model, params, batch = model_and_batch

    def change(path, value, index):
        return jax.tree_util.tree_map_with_path(
            lambda p, leaf: leaf.at[index].set(value) if path_name(p) == path else leaf, params
        )

    up = "params/backbone/stack/periods/block_0/mlp/up_proj/kernel"
    assert first_bad(model, change(up, jnp.nan, (1, 0, 0)), batch, Loss()) == f"parameter {up}[1]"
    huge = change("params/backbone/final_norm/scale", 3e38, slice(None))
    assert first_bad(model, huge, batch, Loss()).startswith("activation backbone/final_norm")
    module = "backbone/stack/periods/block_0/mlp"
    assert first_bad(model, change(up, 3e38, (1,)), batch, Loss()) == f"activation {module}/up_proj[1]"
    below = change(up, 3e38, (0,))  # then all of layer 1 is bad, its mixer too
    assert first_bad(model, below, batch, Loss()) == f"activation {module}/up_proj[0]"
    high = {**batch, "targets": batch["targets"].at[0, 0].set(99), "loss_mask": batch["loss_mask"].at[0, 0].set(1.0)}
    assert first_bad(model, params, high, Loss()) == "the loss"  # a target out of range gives NaN


def test_metrics_are_truncated_and_partial_lines_dropped(tmp_path):
    log = MetricLog(tmp_path, LogConfig(), "x", {})
    for step in range(1, 5):
        log.write(step, {"loss": step / 3, "bad": float("nan")})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    assert len(read_metrics(tmp_path)) == 4
    truncate_metrics(tmp_path, 2)
    assert read_metrics(tmp_path) == [{"step": s, "loss": s / 3, "bad": None} for s in (1, 2)]


def test_progress_lines():
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    plain, live = io.StringIO(), Terminal()
    for out in (plain, live):
        progress = Progress(20, 10, out=out)
        for step in range(1, 21):
            progress.update(step, 1.5, 12345.0, 75.0)
        progress.say("done")
    assert plain.getvalue().splitlines() == [
        "step 10/20  loss 1.5000  12.3k tokens/s  ETA 1:15",
        "step 20/20  loss 1.5000  12.3k tokens/s  ETA 1:15",
        "done",
    ]
    assert live.getvalue().startswith("\rstep 1/20") and live.getvalue().endswith("\rdone\n")
    assert (duration(3675), rate(5e6), rate(12)) == ("1:01:15", "5.0M", "12")


def test_samples_are_text_and_repeatable():
    model = tiny_model(vocab_size=264).make()
    params = unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    data = SimpleNamespace(tokenizer=ByteTokenizer())
    cfg = TrainConfig(sample_prompt="ab", sample_tokens=8)
    texts = [sample_text(model, params, data, cfg, seed_of(jnp.array([0, 7], jnp.uint32), step)) for step in (3, 3, 4)]  # pyright: ignore
    assert texts[0] is not None and texts[0].startswith("ab") and texts[0] == texts[1] != texts[2]
    assert sample_text(model, params, Counting(), cfg, 0) is None
    assert tokens_are_bytes(data) and not tokens_are_bytes(Counting())  # pyright: ignore


def test_positions_of_other_processes():
    assert own_position([b"a"]) == b"a"
    assert own_position([b"a", b"a"]) == b"a"
    with pytest.raises(UserError, match="2 processes"):
        own_position([b"a", b"b"])


def test_config_json_is_plain(trained):
    assert json.loads((trained[0].run_dir / "config.json").read_text())["train"]["steps"] == 12
