"""Numbers over time: ``metrics.jsonl`` (one JSON object per line, with its ``step``), and Weights & Biases."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seqmodels.errors import UserError
from seqmodels.train.experiment import LogConfig

FILE = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's ``metrics.jsonl``; none if the file is absent."""
    path = Path(run_dir) / FILE
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # what has no newline was cut off by a kill
    return [json.loads(line) for line in lines if line]


def truncate_metrics(run_dir: Path, step: int) -> None:
    """Drop what was logged after `step`, so that a resumed run repeats no entry."""
    kept = [entry for entry in read_metrics(run_dir) if entry["step"] <= step]
    partial = Path(run_dir) / f"{FILE}.partial"
    partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    os.replace(partial, Path(run_dir) / FILE)


class MetricLog:
    """Appends metrics to the run's file, and to Weights & Biases if asked to. Only the first process writes."""

    def __init__(self, run_dir: Path, cfg: LogConfig, name: str, config: Any) -> None:
        self._path = Path(run_dir) / FILE
        self._start = functools.partial(start_wandb, run_dir, cfg, name, config)
        self._wanted = jax.process_index() == 0 and cfg.wandb != "disabled"
        self._wandb: Any = None

    def open(self) -> None:
        """Start Weights & Biases, if asked to."""
        if self._wanted:
            self._wandb = self._start()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line; it is in the file when this returns.

        Raises:
          UserError: the file cannot be written (the disk is full).
        """
        if jax.process_index() != 0:
            return
        entry = {"step": step, **{name: finite(value) for name, value in metrics.items()}}
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(f"{self._path} cannot be written ({error.strerror}); free space, then --resume") from error
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)

    def close(self) -> None:
        """Finish the Weights & Biases run."""
        if self._wandb is not None:
            self._wandb.finish()


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: they become ``null``."""
    return float(value) if np.isfinite(value) else None


def start_wandb(run_dir: Path, cfg: LogConfig, name: str, config: Any) -> Any:
    """A Weights & Biases run with its files in `run_dir`; offline it needs neither network nor account.

    Raises:
      UserError: the package or, online, the account is missing.
    """
    try:
        import wandb

        return wandb.init(
            mode=cfg.wandb,
            project=cfg.project,
            name=name,
            config=config,
            dir=str(run_dir),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except Exception as error:  # wandb raises several unrelated types
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"log.wandb={cfg.wandb!r} does not start ({reason}); set --log.wandb offline") from error


def flatten(metrics: dict[str, Any], slice_names: tuple[str, ...]) -> dict[str, float]:
    """Scalars from a step's or an evaluation's metrics on the host.

    ``correct`` becomes ``accuracy``, and the sums per slice ``slice/NAME/loss`` and ``slice/NAME/accuracy`` of the
    slices that have tokens.
    """
    tokens = float(metrics["tokens"])
    flat = {
        name: float(value)
        for name, value in metrics.items()
        if np.ndim(value) == 0 and name not in ("correct", "halted")
    }
    if "correct" in metrics:
        flat["accuracy"] = float(metrics["correct"]) / max(tokens, 1.0)
    for i, name in enumerate(slice_names if "slice/tokens" in metrics else ()):
        held = float(metrics["slice/tokens"][i])
        if held:
            flat[f"slice/{name}/loss"] = float(metrics["slice/loss"][i]) / held
            if "slice/correct" in metrics:
                flat[f"slice/{name}/accuracy"] = float(metrics["slice/correct"][i]) / held
    return flat
