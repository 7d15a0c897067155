"""One config on one device, on eight, and on two processes: the same losses."""

import dataclasses
import shutil
import socket

import jax
import numpy as np
import pytest

from seqmodels.runs import load_run
from seqmodels.sharding import MeshConfig
from seqmodels.train.checkpoint import saved_steps
from seqmodels.train.loop import fit
from seqmodels.train.metrics import read_metrics
from seqmodels.train.samples import sample_text, seed_of
from tests.train.conftest import cache, own_cache  # noqa: F401  (fixtures)
from tests.train.tiny import HYBRID, Counting, finish, start_child, tiny_experiment, tiny_model

EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)


def losses(run_dir):
    """Training losses."""
    return [entry["loss"] for entry in read_metrics(run_dir) if "loss" in entry]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def two_processes(run_dir, cache_dir, *arguments):
    """Processes of four devices each, on loopback."""
    address = f"localhost:{free_port()}"
    mesh = ["--hybrid", "--mesh.distributed", "True", "--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    common = {"JAX_NUM_CPU_DEVICES": "4", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    started = [
        start_child(run_dir, *mesh, *arguments, cache=cache_dir / str(i), JAX_PROCESS_ID=str(i), **common)
        for i in range(2)
    ]
    return [finish(child) for child in started]


def check_sample(run_dir, step):
    """The sample that several processes wrote is what one process makes of their checkpoint."""
    run = load_run(run_dir, step)
    written = (run_dir / "samples" / f"{step}.txt").read_text()
    cfg = run.experiment.train
    seed = seed_of(jax.random.key_data(jax.random.split(jax.random.key(cfg.seed))[1]), step)
    assert len(written) == 23 and written.startswith("ABC")
    assert written == sample_text(run.model, run.params, run.experiment.data, cfg, seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_losses_agree(tmp_path, cache):  # noqa: F811
    """The checkpoint that two processes wrote then goes on in a single process, as the undisturbed run would."""
    plain = tiny_experiment(model=tiny_model(pattern=HYBRID))
    longer = dataclasses.replace(plain, train=dataclasses.replace(plain.train, steps=16, eval_every=-1))
    for name, experiment in (
        ("one", longer),
        ("eight", dataclasses.replace(longer, mesh=EIGHT)),
    ):
        fit(experiment, tmp_path / name)
    changes = "--train.steps 16 --train.eval-every -1 --checkpoint.keep-last 9"
    samples = "--data.letters True --train.sample-every 0 --train.sample-prompt ABC --train.sample-tokens 20"
    outputs = two_processes(tmp_path / "two", cache, *changes.split(), *samples.split())
    assert "step 16/16" in outputs[0][0] and "step" not in outputs[1][0]  # only the first process reports
    assert saved_steps(tmp_path / "two" / "checkpoints") == [4, 8, 12, 16]

    expected = losses(tmp_path / "one")
    assert len(expected) == 16 and expected[-1] < expected[0] - 0.3
    for name in ("eight", "two"):
        np.testing.assert_allclose(losses(tmp_path / name), expected, rtol=5e-5, err_msg=name)

    check_sample(tmp_path / "two", 16)
    for step in (12, 16):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / str(step))
    result = fit(dataclasses.replace(longer, data=Counting(letters=True)), tmp_path / "two", resume=True)
    assert result.step == 16
    np.testing.assert_allclose(losses(tmp_path / "two"), expected, rtol=5e-5)
