"""Accuracy on labels, overall and by slice (difficulty): of classifiers, and of language models trained to answer.

Both are asked as in training (`train.step.measure`): a classifier once per row, a language model at the last token.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from eval.base import Task, batches
from seqmodels.data.base import Dataset
from seqmodels.data.classification import Classification
from seqmodels.data.listops import ListOps, root_accuracy
from seqmodels.errors import UserError
from seqmodels.models import LanguageModel, Model, SequenceClassifier
from seqmodels.train.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class ClassificationConfig(Task):
    """Share of right labels on one epoch of a held-out split of the run's data."""

    takes: ClassVar[tuple[type, ...]] = (LanguageModel, SequenceClassifier)

    split: str = "test"
    """Which held-out part: valid or test."""
    batch_size: int = 32
    """Rows per call."""
    limit: int = 0
    """Batches at most; 0 for all."""

    def __post_init__(self) -> None:
        for field, least in (("batch_size", 1), ("limit", 0)):
            if getattr(self, field) < least:
                flag = f"--classification.{field.replace('_', '-')}"
                raise UserError(f"classification.{field}={getattr(self, field)} must be at least {least}; set {flag}")
        if self.split not in ("valid", "test"):
            raise UserError(
                f"classification.split={self.split!r} must be valid or test; set --classification.split test"
            )

    def measure(self, model: Model, params: Any, data: Dataset) -> dict[str, float]:
        if not isinstance(data, Classification):
            kind = type(data).__name__
            raise UserError(f"--tasks classification asks for labels, but the run's data {kind} has none; see --tasks")
        names = data.slice_names
        step = jax.jit(make_eval_step(model, slices=len(names)))
        sums: Any = None
        for batch in batches(data, self.split, self.batch_size, self.limit):
            found = jax.device_get(step(params, batch))
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        rows = float(sums["tokens"])
        results = {"accuracy": float(sums["correct"]) / rows, "loss": float(sums["loss"]) / rows, "rows": rows}
        for i, name in enumerate(names):
            if sums["slice/tokens"][i]:
                results[f"accuracy@{name}"] = float(sums["slice/correct"][i] / sums["slice/tokens"][i])
        return results

    def plot(self, results: dict[str, float], axes: Any) -> None:
        curve = self.curve(results, "accuracy") or {"all": results[f"{self.name}/accuracy"]}
        axes.bar(list(curve), list(curve.values()))
        axes.axhline(results[f"{self.name}/accuracy"], color="black", linestyle="--", label="all rows")
        axes.set(xlabel="slice", ylabel="share that is right", ylim=(0, 1.02), title="Classification")
        axes.tick_params(axis="x", rotation=30)
        axes.legend()


@dataclasses.dataclass(frozen=True)
class RootOperator:
    """The job of a table's cell that trains nothing: what the best answers score that know the root operator alone."""

    data: ListOps
    examples: int

    def run(self, directory: Path) -> dict[str, float]:
        return {"reference/root_operator": root_accuracy(self.data, self.examples)}
