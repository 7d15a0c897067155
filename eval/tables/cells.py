"""Cells of a table: one job each, its result one JSON file. A sweep runs the jobs that are not finished.

``OUT/cells/NAME/`` holds ``config.json`` (the job), whatever the job writes, and ``result.json`` once it is finished.
Several processes may run one sweep: each takes cells that no other one holds, by a lock on ``OUT/locks/NAME``, which
the system lifts when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from benchmarks.measure import environment
from seqmodels.config import from_json, to_json
from seqmodels.errors import UserError
from seqmodels.train.diagnose import TrainingDiverged
from seqmodels.train.progress import duration

CONFIG, RESULT = "config.json", "result.json"
DIVERGED = "sweep/diverged"
"""The only metric of a cell whose training met a loss or gradient that is not finite."""


class Interrupted(Exception):
    """The signal that stopped a job before its end; the next sweep goes on from there."""


class Job(Protocol):
    """What a cell computes: a frozen dataclass that `seqmodels.config.to_json` can write.

    Define it in a module that is not run as a program, or JSON will look for its class in ``__main__``.
    """

    def run(self, directory: Path) -> dict[str, float]:
        """The metrics, whose names hold a slash, such as ``recall/accuracy``.

        A job that was killed finds in `directory` what it left there, and must come to the same numbers as without.

        Raises:
          Interrupted: a signal asked to stop.
          TrainingDiverged: there is no result, and there will be none.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    name: str
    """Unique in its table, and of letters, digits, dots, dashes and underscores."""
    labels: Mapping[str, str | float]
    """What distinguishes it, column by column; ``seed`` is among them."""
    job: Job

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII):
            raise ValueError(f"name={self.name!r} is no file name; use letters, digits, '.', '-' and '_'")
        if "seed" not in self.labels or any("/" in label for label in self.labels):
            raise ValueError(f"labels={list(self.labels)} of {self.name!r} need 'seed', and no slash: metrics have one")


def slug(*parts: str | float) -> str:
    """A file name of labels: ``slug("mqar", "GatedDeltaNet", "3:1", 2e-3)`` is ``mqar_gateddeltanet_3-1_0.002``."""
    words = (f"{part:g}" if isinstance(part, float) else str(part).lower() for part in parts)
    return "_".join(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words)


class Store:
    """The cells of a sweep on disk."""

    def __init__(self, directory: Path) -> None:
        self.cells = directory / "cells"
        self.locks = directory / "locks"

    @contextlib.contextmanager
    def hold(self, cell: Cell) -> Iterator[bool]:
        """Keep other processes from a cell; false if one of them holds it."""
        self.locks.mkdir(parents=True, exist_ok=True)
        with (self.locks / cell.name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True  # closing the file lifts the lock

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What `run` wrote when the cell was finished."""
        file = self.cells / cell.name / RESULT
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def begun(self, cell: Cell) -> bool:
        """Whether the cell was begun, finished or not."""
        return (self.cells / cell.name / CONFIG).is_file()

    def change(self, cell: Cell) -> str | None:
        """The first field of a cell that was begun which the table gives otherwise now."""
        if not self.begun(cell):
            return None
        file = self.cells / cell.name / CONFIG
        try:
            saved = from_json(file.read_text(encoding="utf-8"), str(file))  # fields that are new since get defaults
        except UserError as error:
            return str(error)
        return difference(json.loads(to_json(saved)), json.loads(to_json(cell.job)))

    def prepare(self, cells: Sequence[Cell], replace: bool) -> None:
        """Make sure that what is there belongs to `cells`; `replace` deletes what does not.

        Raises:
          UserError: a cell was begun with another config, or another process runs it with one.
        """
        for cell in cells:
            change, where = self.change(cell), self.cells / cell.name
            if change is None:
                continue
            begun = f"cell {cell.name!r} in {where} was begun with another config ({change})"
            if not replace:
                raise UserError(f"{begun}; add --replace")
            with self.hold(cell) as held:
                if not held:
                    raise UserError(f"{begun} by a process that still runs; stop it, or give another --out")
                shutil.rmtree(where)

    def run(self, cell: Cell, machine: Mapping[str, Any]) -> dict[str, Any]:
        """Run a cell to its end, and write its result."""
        directory, config = self.cells / cell.name, to_json(cell.job)
        resumed = self.begun(cell)
        directory.mkdir(parents=True, exist_ok=True)
        write(directory / CONFIG, config)
        start = time.monotonic()
        try:
            metrics = cell.job.run(directory)
        except TrainingDiverged:
            metrics = {DIVERGED: 1.0}
        result = {
            "cell": cell.name,
            "labels": dict(cell.labels),
            "metrics": {name: finite(value) for name, value in metrics.items()},
            "seed": cell.labels["seed"],
            "digest": hashlib.sha256(config.encode()).hexdigest(),
            "seconds": round(time.monotonic() - start, 2),  # since the last interruption
            "resumed": resumed,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": dict(machine),
        }
        write(directory / RESULT, json.dumps(result, indent=2) + "\n")
        return result


def sweep(
    cells: Sequence[Cell], store: Store, *, replace: bool = False, say: Callable[[str], None] = print
) -> list[str]:
    """Run every cell that is not finished and that no other process runs, one after the other.

    Returns:
      The cells that other processes still run.

    Raises:
      UserError: a cell was begun with another config, and `replace` is false.
      Interrupted: a signal stopped the sweep; what was done so far is kept.
    """
    store.prepare(cells, replace)
    spent = [result["seconds"] for cell in cells if (result := store.result(cell)) and not result["resumed"]]
    todo = [cell for cell in cells if store.result(cell) is None]
    if len(todo) < len(cells):
        say(f"{len(cells) - len(todo)} of {len(cells)} cells are finished already")
    machine = environment() if todo else {}
    elsewhere = []
    for number, cell in enumerate(todo):
        with store.hold(cell) as held:
            if not held:
                elsewhere.append(cell)
            if not held or store.result(cell):
                continue
            left = f", ETA {duration(sum(spent) / len(spent) * (len(todo) - number))}" if spent else ""
            say(f"cell {len(cells) - len(todo) + number + 1} of {len(cells)}{left}: {cell.name}")
            spent.append(store.run(cell, machine)["seconds"])
        jax.clear_caches()  # programs of other cells are of no use, and a table has hundreds
    return [cell.name for cell in elsewhere if store.result(cell) is None]


def write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all (first process only)."""
    if jax.process_index() == 0:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: they become ``null``."""
    return float(value) if value is not None and math.isfinite(value) else None


def difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first place where two JSON values differ, as ``path: old, now new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        parts = [(f"{path}.{name}", old.get(name), new.get(name)) for name in names]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(f"{path}.{i}", *pair) for i, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else f"{path.lstrip('.')} was {_short(old)}, now {_short(new)}"
    return next((found for name, a, b in parts if (found := difference(a, b, name))), None)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
