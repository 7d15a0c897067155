"""What evaluation tasks share: the contract, scoring of batches, and scores by slice.

A task is a frozen config with ``run(model, params, data) -> dict[str, float]``, the same inside the training loop and
standalone. Results are named ``task/what``; one that depends on something, such as a position, ends in ``@`` and its
value.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, cast

import jax
import numpy as np

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.data.base import Dataset
from seqmodels.data.tokenizer import ByteTokenizer
from seqmodels.errors import UserError
from seqmodels.models import LanguageModel, Model, SequenceClassifier
from seqmodels.train.experiment import Experiment
from seqmodels.train.step import predict


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Base of every evaluation task."""

    takes: ClassVar[tuple[type, ...]] = (LanguageModel,)
    """The kinds of models that it can be posed to."""

    @property
    def name(self) -> str:
        """The name of the task's module."""
        return type(self).__module__.rpartition(".")[2]

    def run(self, model: Model, params: Any, data: Dataset) -> dict[str, float]:
        """Evaluate `params` of `model`, which was trained on `data`.

        Raises:
          UserError: the task cannot be posed to a model of this kind or vocabulary.
        """
        if isinstance(model, SequenceClassifier) and SequenceClassifier not in self.takes:
            raise UserError(
                f"--tasks {self.name} asks language models, but the run trained a classifier; "
                "use --tasks classification"
            )
        return {f"{self.name}/{what}": value for what, value in self.measure(model, params, data).items()}

    def of_run(self, experiment: Experiment) -> Task:
        """The task with what it takes over from the run, where the user has not said otherwise."""
        return self

    @abc.abstractmethod
    def measure(self, model: Any, params: Any, data: Dataset) -> dict[str, float]:
        """The results of `run`, without the task's name."""

    @abc.abstractmethod
    def plot(self, results: dict[str, float], axes: Any) -> None:
        """Draw what `run` returned on matplotlib `axes`."""

    def curve(self, results: dict[str, float], what: str) -> dict[str, float]:
        """The results named ``task/what@value``, by value."""
        prefix = f"{self.name}/{what}@"
        return {name.removeprefix(prefix): result for name, result in results.items() if name.startswith(prefix)}


def discover() -> dict[str, type[Task]]:
    """Every task of the package by the name of its module."""
    import eval as package

    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name in ("base", "run") or info.ispkg:
            continue
        module = importlib.import_module(f"eval.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__:
                found[info.name] = value
    return found


class Scores(NamedTuple):
    """What a model says about every target of a batch."""

    loss: np.ndarray  # [B,T] float32: negative log-likelihood in nats, 0 outside of the mask
    correct: np.ndarray  # [B,T] bool: the target is the likeliest token


@functools.partial(jax.jit, static_argnames="model")
def _score(model: LanguageModel, params: Any, batch: dict[str, Array]) -> tuple[Array, Array]:
    output = model.apply(params, batch["tokens"], segment_ids=batch["segment_ids"], method="hidden")
    hidden = cast(Any, output)[0]
    head = model.head(params)
    loss = ops.linear_cross_entropy(
        hidden, head, batch["targets"], weights=batch["loss_mask"], softcap=model.cfg.softcap, reduction="none"
    )
    return loss, predict(hidden, head) == batch["targets"]


def score(model: LanguageModel, params: Any, batch: dict[str, np.ndarray]) -> Scores:
    """Scores of one batch of the data contract."""
    used = {name: batch[name] for name in ("tokens", "targets", "loss_mask", "segment_ids")}
    loss, correct = _score(model, params, used)
    return Scores(np.asarray(loss, np.float32), np.asarray(correct))


def batches(data: Dataset, split: str, batch_size: int, limit: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """One epoch of a split, `limit` batches at most (0: all)."""
    for number, batch in enumerate(data.make(split, batch_size=batch_size, repeat=False)):
        if limit and number >= limit:
            return
        yield batch


class SliceScores(NamedTuple):
    """Sums per slice, in the order of ``slice_names``."""

    rows: np.ndarray  # [S] rows seen
    exact: np.ndarray  # [S] rows whose every target is right
    tokens: np.ndarray  # [S] targets
    correct: np.ndarray  # [S] right ones


def score_slices(
    model: LanguageModel, params: Any, data: Dataset, stream: Iterable[dict[str, np.ndarray]]
) -> SliceScores:
    """Accuracies per slice over batches of `data` that carry ``slices [B]``."""
    sums = np.zeros((4, len(data.slice_names)), np.int64)
    for batch in stream:
        mask = batch["loss_mask"] > 0
        right = score(model, params, batch).correct & mask
        real = mask.any(axis=1)  # rows of padding fill the last batch
        counts = (real, real & (right == mask).all(axis=1), mask.sum(axis=1), right.sum(axis=1))
        for row, values in zip(sums, counts, strict=True):
            np.add.at(row, batch["slices"], values.astype(np.int64))
    return SliceScores(*sums)


def require_bytes(task: str, data: Dataset) -> None:
    """Raise `UserError` unless the tokens of `data` are bytes."""
    if not isinstance(data.tokenizer, ByteTokenizer):
        raise UserError(
            f"--tasks {task} asks questions as bytes, but the run's data {type(data).__name__} has another vocabulary; "
            "evaluate a byte-level model"
        )
