"""Run directories: where they are, what they hold, and how to get a trained model back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.config import from_json
from seqmodels.errors import UserError, suggest
from seqmodels.models import Model
from seqmodels.sharding import unbox
from seqmodels.train.checkpoint import restore_params
from seqmodels.train.experiment import Experiment

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


class Run(NamedTuple):
    """A trained model and what it was trained by."""

    experiment: Experiment
    model: Model
    params: Any  # {"params": ...}
    step: int  # of the checkpoint


def load_experiment(run_dir: str | os.PathLike[str]) -> Experiment:
    """The experiment of a run directory.

    Raises:
      UserError: no such directory, no ``config.json`` in it, or one that cannot be read.
    """
    directory = Path(run_dir)
    if not directory.is_dir():
        siblings = [str(path) for path in directory.parent.glob("*") if (path / CONFIG).is_file()]
        hint = suggest(str(directory), siblings)
        raise UserError(f"run directory {str(run_dir)!r} does not exist{hint}; give one that train.py wrote")
    file = directory / CONFIG
    if not file.is_file():
        raise UserError(f"run directory {str(run_dir)!r} holds no {CONFIG}; give one that train.py wrote")
    try:
        experiment = from_json(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8; restore it from its checkpoint") from None
    if not isinstance(experiment, Experiment):
        raise UserError(f"{file} holds {type(experiment).__name__}, expected Experiment; give a run of train.py")
    return experiment


def load_run(run_dir: str | os.PathLike[str], step: int | None = None) -> Run:
    """Experiment, model and parameters of a run directory, from checkpoint `step` or else the newest whole one.

    Raises:
      UserError: the directory is no run, has no usable checkpoint, or holds one of another architecture.
    """
    experiment = load_experiment(run_dir)
    model = experiment.model.make()
    abstract = unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    params, found = restore_params(Path(run_dir) / CHECKPOINTS, abstract, step=step)
    return Run(experiment, model, params, found)
