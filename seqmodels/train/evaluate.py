"""Held-out loss during training."""

from __future__ import annotations

import math
from typing import Any

import jax

from seqmodels.data.base import DataIterator, Dataset
from seqmodels.data.classification import Classification
from seqmodels.data.tokenizer import ByteTokenizer
from seqmodels.sharding import to_devices
from seqmodels.train.metrics import flatten
from seqmodels.train.session import Session

PREFIX = "valid/"


def evaluate(session: Session, params: Any, batches: DataIterator, start: bytes) -> dict[str, float]:
    """Metrics on ``train.eval_batches`` batches from position `start` on: the same ones every time.

    ``valid/loss`` in nats per token (of a classifier: per label), ``valid/accuracy``, both per slice,
    ``valid/bits_per_byte`` when tokens are bytes, and what the experiment's tasks report.
    """
    experiment = session.experiment
    batches.set_state(start)
    sums: Any = None
    for _ in range(experiment.train.eval_batches):
        found = session.eval_step(params, to_devices(next(batches), session.batch_shardings))
        sums = found if sums is None else jax.tree.map(lambda a, b: a + b, sums, found)
    sums = jax.device_get(sums)
    sums["loss"] = sums["loss"] / max(float(sums["tokens"]), 1.0)
    metrics = {PREFIX + name: value for name, value in flatten(sums, experiment.data.slice_names).items()}
    if tokens_are_bytes(experiment.data):
        metrics[PREFIX + "bits_per_byte"] = metrics[PREFIX + "loss"] / math.log(2)
    for task in experiment.eval:
        metrics |= task.run(session.model, params, experiment.data)
    return metrics


def tokens_are_bytes(data: Dataset) -> bool:
    """Whether a nat per token is a nat per byte: every byte is a target, and no label is."""
    return isinstance(data.tokenizer, ByteTokenizer) and not isinstance(data, Classification)


def summary(metrics: dict[str, float]) -> str:
    """The numbers of an evaluation on one line."""
    shown = {name: value for name, value in metrics.items() if "slice/" not in name and not name.endswith("tokens")}
    return "  ".join(f"{name.removeprefix(PREFIX).replace('_', ' ')} {value:.4f}" for name, value in shown.items())
