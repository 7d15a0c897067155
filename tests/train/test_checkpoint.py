"""Checkpoints: what is kept, what is trusted, and onto which mesh they go."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from seqmodels.train.checkpoint import MANIFEST, Checkpointer, newest_good, restore_params, saved_steps
from seqmodels.train.experiment import CheckpointConfig, OptimConfig
from seqmodels.train.optim import make_optimiser
from seqmodels.train.state import create_state, place_state
from tests.train.tiny import tiny_model


def placed(mesh: MeshConfig = MeshConfig(data=1), optimiser: str = "adamw", **changes):  # noqa: B008
    partitioner = Partitioner(make_mesh(mesh), mesh.rules)
    return place_state(tiny_model(**changes).make(), make_optimiser(OptimConfig(name=optimiser), 10), partitioner)  # pyright: ignore


def write(directory: Path, losses, cfg: CheckpointConfig | None = None):
    """Checkpoints 1, 2, …, one per loss; returns the state that they all hold."""
    state = create_state(placed(), 0)
    checkpoints = Checkpointer(directory, cfg or CheckpointConfig())
    for step, loss in enumerate(losses, 1):
        checkpoints.save(state, step, f"position {step}".encode(), {"name": "tiny"}, loss)
    checkpoints.close()
    return state


def restore(directory: Path, target=None):
    checkpoints = Checkpointer(directory, CheckpointConfig())
    try:
        return checkpoints.restore(target or placed())
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two checkpoints that no test changes."""
    directory = tmp_path_factory.mktemp("pristine")
    return directory, write(directory, [2.0, 1.0])


@pytest.fixture
def copy(pristine, tmp_path):
    shutil.copytree(pristine[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("cfg", "kept"),
    [(CheckpointConfig(keep_last=2), [2, 4, 5]), (CheckpointConfig(keep_last=1, keep_best=False), [5])],
    ids=["last and best", "last"],
)
def test_keeps_the_last_and_the_best(tmp_path, cfg, kept):
    write(tmp_path, [3.0, 1.0, 2.0, None, 4.0], cfg)
    assert saved_steps(tmp_path) == kept


def test_restores_bit_for_bit_on_another_mesh(pristine):
    directory, state = pristine
    target = placed(MeshConfig(data=2, fsdp=2, tensor=2))
    found = restore(directory, target)
    assert (found.step, found.positions) == (2, [b"position 2"])
    assert_same(found.state, state)
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    kernel = found.state.params["params"]["backbone"]["stack"]["periods"]["block_0"]["mixer"]["q_proj"]["kernel"]
    assert kernel.sharding.num_devices == 8 and not kernel.is_fully_replicated
    params, step = restore_params(directory, target.abstract.params)
    assert step == 2
    assert_same(params, state.params)


def corrupt(directory: Path, how: str) -> str:
    """Damage the largest file of a checkpoint; returns its name."""
    file = max((f for f in directory.rglob("*") if f.is_file() and f.name != MANIFEST), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    if how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "bit-flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "missing":
        file.unlink()
    else:  # unfinished
        (directory / MANIFEST).unlink()
        return "manifest"
    return str(file.relative_to(directory))


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "missing", "unfinished"])
def test_damaged_checkpoints_are_skipped_by_name(copy, how, caplog):
    name = corrupt(copy / "2", how)
    with caplog.at_level(logging.WARNING, "seqmodels.checkpoint"):
        assert newest_good(copy) == 1
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert str(copy / "2") in message and name in message and "\n" not in message
    found = restore(copy)
    assert (found.step, found.positions) == (1, [b"position 1"])
    assert saved_steps(copy) == [1] and (copy / "2.damaged").is_dir()


def test_a_damaged_manifest_is_damage(copy):
    (copy / "2" / MANIFEST).write_text("{")
    assert newest_good(copy) == 1


def test_nothing_whole_is_nothing(copy):
    for step in (1, 2):
        corrupt(copy / str(step), "bit-flipped")
    with pytest.raises(UserError, match="no usable checkpoint"):
        restore_params(copy, placed().abstract.params)
    assert saved_steps(copy) == [1, 2]  # reading changes nothing
    assert restore(copy) is None
    assert saved_steps(copy) == []  # but training will write these steps again


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"dim": 32}, ["params/", "float32[16]", "float32[32]"]),
        ({"depth": 4}, ["params/", "float32[2, 16, 16]", "float32[4, 16, 16]"]),
        ({"tie_embeddings": False}, ["lm_head", "absent there"]),
        ({"optimiser": "lion"}, ["opt_state/", "absent here"]),
    ],
)
def test_another_architecture_is_named(copy, changes, parts):
    corrupt(copy / "2", "bit-flipped")
    with pytest.raises(UserError) as caught:
        restore(copy, placed(**changes))
    message = str(caught.value)
    assert "\n" not in message and str(copy / "1") in message
    assert all(part in message for part in parts), message
    assert saved_steps(copy) == [1, 2]  # the damaged one was not moved either


def test_another_dtype_is_refused(pristine):
    target = placed()
    narrow = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16"), target.abstract.params)
    with pytest.raises(UserError, match=r"float32\[.*bfloat16\["):
        restore_params(pristine[0], narrow)
    abstract = target.abstract._replace(params=narrow)
    with pytest.raises(UserError, match=r"float32\[.*bfloat16\["):
        restore(pristine[0], target._replace(abstract=abstract))


def test_a_failed_write_is_told_in_one_line(tmp_path, monkeypatch):
    from seqmodels.train import checkpoint

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())
    checkpoints.save(create_state(placed(), 0), 1, b"", {}, None)
    with pytest.raises(UserError, match=r"checkpoint .*1 could not be written .*No space left.*--resume"):
        checkpoints.wait()
    checkpoints.close()
    assert newest_good(tmp_path) is None


def test_manifest_holds_the_loss(pristine):
    assert json.loads((pristine[0] / "2" / MANIFEST).read_text())["loss"] == 1.0
    assert dataclasses.asdict(CheckpointConfig())["keep_best"] is True
