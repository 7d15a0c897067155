"""Processes that are killed, asked to stop, or run out of disk."""

import json
import random
import shutil
import signal
import subprocess
import time

import pytest

from seqmodels.train.checkpoint import damage, newest_good, saved_steps
from seqmodels.train.metrics import read_metrics
from tests.train.tiny import Command, child_command, finish, start, start_child

STEPS = 60
LONG = ["--train.steps", str(STEPS), "--train.eval-every", "20", "--checkpoint.every", "5", "--data.delay", "0.01"]


def curve(run_dir):
    """Everything that must not depend on interruptions."""
    keys = ("step", "loss", "grad_norm", "learning_rate", "valid/loss", "valid/accuracy")
    return [{k: entry[k] for k in keys if k in entry} for entry in read_metrics(run_dir)]


def wait_for(condition, child, seconds=120.0):
    """Poll until `condition` holds; the child must not end before."""
    stop = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, f"ended with code {child.returncode}\n{child.stderr.read()[-3000:]}"
        assert time.monotonic() < stop, "nothing happened"
        time.sleep(0.002)


def unfinished(checkpoints):
    """Whether a checkpoint is being written right now."""
    if any(checkpoints.glob("*.orbax-checkpoint-tmp*")):
        return True
    return any(not (checkpoints / str(step) / "manifest.json").exists() for step in saved_steps(checkpoints))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_five_times_gives_the_undisturbed_curve(tmp_path, cache):
    """SIGKILL at three random steps and during two saves; the resumed curve is the undisturbed one bit for bit."""
    finish(start_child(tmp_path / "whole", *LONG, cache=cache))
    expected = curve(tmp_path / "whole")
    assert [entry["step"] for entry in expected if "loss" in entry] == list(range(1, STEPS + 1))

    run_dir, draw = tmp_path / "killed", random.Random(0)
    for number, target in enumerate(sorted(draw.sample(range(6, STEPS - 8), 5))):
        during_save = number % 2 == 1
        arguments = [*LONG, *(["--resume"] if number else []), *(["--slow-seal", "0.5"] if during_save else [])]
        child = start_child(run_dir, *arguments, cache=cache)
        wait_for(lambda: (read_metrics(run_dir) or [{"step": 0}])[-1]["step"] >= target, child)  # noqa: B023
        if during_save:
            wait_for(lambda: unfinished(run_dir / "checkpoints"), child)
        child.send_signal(signal.SIGKILL)
        finish(child, -signal.SIGKILL)
        if during_save:
            assert unfinished(run_dir / "checkpoints")
    out, _ = finish(start_child(run_dir, *LONG, "--resume", cache=cache))
    assert "resuming" in out
    assert curve(run_dir) == expected
    assert newest_good(run_dir / "checkpoints") == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signals_save_and_exit_cleanly(tmp_path, cache, number):
    child = start_child(tmp_path / "run", *LONG, "--checkpoint.every", "0", cache=cache)
    wait_for(lambda: len(read_metrics(tmp_path / "run")) >= 7, child)
    child.send_signal(number)
    out, _ = finish(child, 0)
    step = newest_good(tmp_path / "run" / "checkpoints")
    assert step is not None and 7 <= step < STEPS
    assert f"stopped by {number.name} after step {step} of {STEPS}; add --resume" in out
    assert read_metrics(tmp_path / "run")[-1]["step"] == step
    assert (tmp_path / "run" / "loss.png").exists()


def one_line(err):
    """The last line of stderr must be the only one that is not a warning of a library."""
    lines = [line for line in err.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def test_below_a_file(tmp_path, cache):
    """No user, root neither, can make a directory below a file."""
    (tmp_path / "file").write_text("x")
    _, err = finish(start_child(tmp_path / "file" / "run", cache=cache), 2)
    assert str(tmp_path / "file" / "run") in one_line(err) and "--run-dir" in err
    assert (tmp_path / "file").read_text() == "x"


def on_small_disk(tmp_path, size, options, *arguments, cache):
    """Run a child whose run directory lies on a file system of `size` bytes that nobody else sees."""
    mount = tmp_path / "disk"
    mount.mkdir()
    keep = tmp_path / "keep"
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a process mount a file system of its own")
    command = child_command(mount / "run", *arguments, cache=cache)
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {mount} && {options} {' '.join(command.args)}; code=$?; "
        f"cp -r {mount} {keep}; exit $code"
    )
    return start(Command(["unshare", "-rm", "sh", "-c", script], command.env)), keep


def test_read_only_disk(tmp_path, cache):
    child, keep = on_small_disk(tmp_path, "1m", f"mount -o remount,ro {tmp_path / 'disk'} &&", cache=cache)
    _, err = finish(child, 2)
    assert "Read-only file system" in one_line(err) and "--run-dir" in err
    assert not list(keep.iterdir())


def test_disk_too_small_for_a_checkpoint(tmp_path, cache):
    child, keep = on_small_disk(tmp_path, "100k", "", cache=cache)
    _, err = finish(child, 2)
    message = one_line(err)
    assert "MB free but a checkpoint takes" in message and "free space" in message
    assert not (keep / "run" / "config.json").exists()


@pytest.mark.slow
def test_disk_fills_up(tmp_path, cache):
    """The error is one line, and the checkpoints from before are whole."""
    child, keep = on_small_disk(tmp_path, "700k", "", *LONG, "--checkpoint.keep-last", "50", cache=cache)
    _, err = finish(child, 2)
    message = one_line(err)
    assert "free space" in message and "--resume" in message
    whole = [
        step
        for step in saved_steps(keep / "run" / "checkpoints")
        if damage(keep / "run" / "checkpoints" / str(step)) is None
    ]
    assert whole and json.loads((keep / "run" / "config.json").read_text())["name"] == "tiny"
