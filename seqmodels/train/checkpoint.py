"""Checkpoints: written in the background by Orbax, sealed by a manifest of hashes, never trusted without it.

``checkpoints/STEP/`` holds the items ``params`` (alone, so that evaluation need not read the rest), ``train``
(optimiser state, counters, RNG) and ``meta`` (JSON: the run's config, data positions, the shapes of all arrays). When
Orbax has finished a checkpoint, ``manifest.json`` with the sha256 of every file is added. A directory without a
manifest was being written when the process died; one whose files differ from it is damaged. Both are skipped with a
warning that names them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from seqmodels.errors import UserError
from seqmodels.sharding import path_name
from seqmodels.train.experiment import CheckpointConfig
from seqmodels.train.state import Placed, TrainState

logger = logging.getLogger("seqmodels.checkpoint")
# Orbax logs every failed write with tracebacks of its threads, and asyncio those of its tasks; `Checkpointer` raises
# them as one line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or record.levelno < logging.ERROR)
logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())

DISK_ERRORS = ("No space left on device", "Disk quota exceeded", "Read-only file system", "Permission denied")

MANIFEST = "manifest.json"
DAMAGED = ".damaged"


class Restored(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState
    step: int
    positions: list[bytes]  # of the data iterator, one per process that wrote the checkpoint


class Checkpointer:
    """Writes and restores the checkpoints of a run directory.

    All processes of a distributed run must make the same calls. Only the first one writes manifests and deletes.
    """

    def __init__(self, directory: Path, cfg: CheckpointConfig) -> None:
        self.directory = Path(directory).resolve()
        self.cfg = cfg
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._sealing: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, state: TrainState, step: int, position: bytes, config: Any, loss: float | None = None) -> None:
        """Write `state` as checkpoint `step`; returns when the arrays are copied, the rest happens in the background.

        `position` is this process's data position, `config` the experiment's JSON form, `loss` the held-out loss that
        ranks the checkpoint. Raises `UserError` when this or the previous checkpoint could not be written.
        """
        self.wait()
        meta = {
            "step": step,
            "config": config,
            "positions": [base64.b64encode(p).decode() for p in gather_bytes(position)],
            "arrays": describe(state),
        }
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            train=ocp.args.StandardSave(_rest(state)),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            self._require_space(state)
            self._orbax.save(self.directory / str(step), args=args)
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error
        self._sealing = threading.Thread(target=self._seal, args=(step, loss), name=f"seal-{step}")
        self._sealing.start()
        if not self.cfg.asynchronous:
            self.wait()

    def _require_space(self, state: TrainState) -> None:
        """Writes that fail half-way print tracebacks of TensorStore's threads, which nothing can catch."""
        self.directory.mkdir(parents=True, exist_ok=True)
        needed, free = room(self.directory, state)
        if free < needed:
            raise OSError(DISK_ERRORS[0])

    def wait(self) -> None:
        """Return when nothing is being written any more. Raises `UserError` if the last checkpoint failed."""
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait, and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _seal(self, step: int, loss: float | None) -> None:
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                write_manifest(self.directory / str(step), loss)
                self._retire()
        except Exception as error:  # what a writing thread of Orbax raises has no common type
            self._error = self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> UserError:
        known = [reason for reason in DISK_ERRORS if reason in str(error)]
        reason = known[0] if known else f"{type(error).__name__}: {error}".splitlines()[0]
        return UserError(
            f"checkpoint {self.directory / str(step)} could not be written ({reason}); "
            "free space or choose another --run-dir, then --resume"
        )

    def _retire(self) -> None:
        """Delete sealed checkpoints beyond the newest few and the best."""
        steps = sealed_steps(self.directory)
        keep = set(steps[-self.cfg.keep_last :])
        if self.cfg.keep_best:
            losses = {step: read_manifest(self.directory / str(step)).get("loss") for step in steps}
            ranked = sorted((loss, step) for step, loss in losses.items() if loss is not None)
            keep |= {step for _, step in ranked[:1]}
        for step in set(steps) - keep:
            (self.directory / str(step) / MANIFEST).unlink()  # from here on it counts as unfinished
            shutil.rmtree(self.directory / str(step))

    def restore(self, placed: Placed) -> Restored | None:
        """The newest checkpoint that is whole, on the shardings of `placed`; ``None`` if there is none.

        What comes after it is set aside (renamed to ``STEP.damaged``), for training will write these steps again.

        Raises:
          UserError: the checkpoint is of another architecture or optimiser.
        """
        abstract, shardings = placed.abstract, placed.shardings
        step = self._agree_on_step()
        meta = None
        if step is not None:
            meta = read_meta(self.directory / str(step))
            compare(meta["arrays"], describe(abstract), f"checkpoint {self.directory / str(step)}")
        if jax.process_index() == 0:
            set_aside(self.directory, after=-1 if step is None else step)
        if step is None or meta is None:
            return None
        target = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, shardings
        )
        items = self._orbax.restore(
            self.directory / str(step),
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(target.params), train=ocp.args.StandardRestore(_rest(target))
            ),
        )
        state = TrainState(params=items["params"], **items["train"])
        return Restored(state, step, [base64.b64decode(p) for p in meta["positions"]])

    def _agree_on_step(self) -> int | None:
        """The first process looks at the files and tells the others."""
        step = -1
        if jax.process_index() == 0:
            found = newest_good(self.directory)
            step = -1 if found is None else found
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return None if step < 0 else step


def restore_params(directory: Path, abstract: Any, shardings: Any = None, step: int | None = None) -> tuple[Any, int]:
    """Parameters alone, for evaluation and generation: ``(params, step)``. Changes nothing on disk.

    Args:
      directory: a run's ``checkpoints``.
      abstract: shapes and dtypes of the parameters (``jax.eval_shape`` of ``init``, unboxed).
      shardings: where they go; ``None`` puts them on the first local device.
      step: which checkpoint; ``None`` takes the newest whole one.

    Raises:
      UserError: there is no (such) whole checkpoint, or it is of another architecture.
    """
    directory = Path(directory).resolve()
    if step is None:
        step = newest_good(directory)
        if step is None:
            raise UserError(f"run directory {directory.parent} has no usable checkpoint; train it first")
    elif problem := damage(directory / str(step)):
        raise UserError(f"checkpoint {directory / str(step)} is unusable ({problem}); choose another step")
    arrays = {
        name: spec for name, spec in read_meta(directory / str(step))["arrays"].items() if name.startswith("params/")
    }
    compare(arrays, describe(abstract), f"checkpoint {directory / str(step)}")
    if shardings is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: one, abstract)
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, shardings
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
        items = orbax.restore(directory / str(step), args=ocp.args.Composite(params=ocp.args.StandardRestore(target)))
    return items["params"], step


def room(directory: Path, state: Any) -> tuple[int, int]:
    """Bytes that a checkpoint of `state`, abstract or not, takes; bytes free on the disk of `directory`."""
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return needed, shutil.disk_usage(directory).free


def _rest(state: TrainState) -> dict[str, Any]:
    """All of a state but the parameters."""
    fields = state._asdict()
    del fields["params"]
    return fields


def describe(tree: Any) -> dict[str, Any]:
    """``{path: [shape, dtype]}`` of all arrays; of a state, the parameters come first (``params/…``)."""
    if isinstance(tree, TrainState):
        return describe(tree.params) | describe(_rest(tree))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def compare(saved: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """Raise `UserError` naming the first array that differs."""
    for name in [*expected, *(n for n in saved if n not in expected)]:
        old, new = saved.get(name), expected.get(name)
        if old != new:
            show = lambda spec: "absent" if spec is None else f"{spec[1]}{spec[0]}"  # noqa: E731
            raise UserError(
                f"{where} does not fit this experiment: {name} is {show(old)} there and {show(new)} here; "
                "resume with the run's own config.json or start a new --run-dir"
            )


def sealed_steps(directory: Path) -> list[int]:
    """Steps of all checkpoints with a manifest, ascending."""
    return [step for step in saved_steps(directory) if (directory / str(step) / MANIFEST).is_file()]


def saved_steps(directory: Path) -> list[int]:
    """Steps of all checkpoint directories, whole or not, ascending."""
    return sorted(int(path.name) for path in directory.glob("[0-9]*") if path.name.isdigit() and path.is_dir())


def newest_good(directory: Path) -> int | None:
    """The newest step whose files match their manifest; warns about every newer one that it skips."""
    for step in reversed(saved_steps(directory)):
        problem = damage(directory / str(step))
        if problem is None:
            return step
        logger.warning("skipping checkpoint %s: %s", directory / str(step), problem)
    return None


def set_aside(directory: Path, after: int) -> None:
    """Rename checkpoints newer than step `after`, and remove what a killed save left behind."""
    for step in saved_steps(directory):
        if step > after:
            target = directory / f"{step}{DAMAGED}"
            shutil.rmtree(target, ignore_errors=True)
            (directory / str(step)).rename(target)
    for partial in directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(partial, ignore_errors=True)


def hash_files(directory: Path) -> dict[str, str]:
    """sha256 of every file below `directory` but the manifest."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(directory)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, loss: float | None) -> None:
    """Seal a finished checkpoint: its hashes, made durable before they get their name."""
    partial = directory.parent / f"{directory.name}.{MANIFEST}"
    with open(partial, "w") as file:
        json.dump({"loss": loss, "files": hash_files(directory)}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(directory / MANIFEST)


def read_manifest(directory: Path) -> dict[str, Any]:
    """``{"loss": ..., "files": {name: sha256}}``."""
    return json.loads((directory / MANIFEST).read_text())


def damage(directory: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or ``None``."""
    if not directory.is_dir():
        return "it does not exist"
    try:
        expected = read_manifest(directory)["files"]
    except FileNotFoundError:
        return "it has no manifest, so it was never finished"
    except (ValueError, KeyError, TypeError):
        return "its manifest is damaged"
    found = hash_files(directory)
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"its file {name} is missing"
        if expected.get(name) != found[name]:
            return f"its file {name} is damaged"
    return None


def read_meta(directory: Path) -> dict[str, Any]:
    """The JSON item of a checkpoint."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
        return orbax.restore(directory, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def gather_bytes(data: bytes) -> list[bytes]:
    """`data` of every process, in order, on every process."""
    if jax.process_count() == 1:
        return [data]
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]) for row, size in zip(rows, sizes)]
