"""A generated task at other lengths than the model was trained on: does what it learned reach further?

Rows are those of the run's own data, drawn anew at every length; nothing else about them changes. Induction heads at
lengths far beyond the trained one are the figure of "Mamba" (Gu and Dao, 2023, arXiv:2312.00752).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from eval.base import Task, score_slices
from seqmodels.data.base import Dataset
from seqmodels.data.passkey import Passkey
from seqmodels.data.synthetic import SyntheticTask
from seqmodels.errors import UserError
from seqmodels.models.lm import LanguageModel


@dataclasses.dataclass(frozen=True)
class LengthsConfig(Task):
    """Accuracy of a generated task by length of the rows."""

    factors: tuple[int, ...] = (1, 2, 4)
    """Lengths, as multiples of the trained one."""
    examples: int = 256
    """Rows of a length."""
    batch_size: int = 16
    """Rows per call."""

    def __post_init__(self) -> None:
        for field in ("examples", "batch_size"):
            if getattr(self, field) < 1:
                flag = f"--lengths.{field.replace('_', '-')}"
                raise UserError(f"lengths.{field}={getattr(self, field)} must be at least 1; set {flag}")
        if not self.factors or min(self.factors) < 1:
            raise UserError(f"lengths.factors={self.factors} must be numbers of at least 1; set --lengths.factors")

    def measure(self, model: LanguageModel, params: Any, data: Dataset) -> dict[str, float]:
        if isinstance(data, Passkey) or not isinstance(data, SyntheticTask):
            fix = "use --tasks passkey" if isinstance(data, Passkey) else "evaluate a model of a generated task"
            raise UserError(f"--tasks lengths cannot draw rows of {type(data).__name__} at other lengths; {fix}")
        results = {}
        for factor in dict.fromkeys(self.factors):
            longer = dataclasses.replace(data, seq_len=factor * data.seq_len, heldout_examples=self.examples)
            stream = longer.make("test", batch_size=self.batch_size, repeat=False)
            scores = score_slices(model, params, longer, stream)
            results[f"accuracy@{longer.seq_len}"] = float(scores.correct.sum() / scores.tokens.sum())
        return results

    def plot(self, results: dict[str, float], axes: Any) -> None:
        curve = self.curve(results, "accuracy")
        axes.plot([int(length) for length in curve], list(curve.values()), marker="o")
        axes.set(xlabel="tokens", ylabel="share that is right", ylim=(-0.02, 1.02), title="Length")
        axes.set_xscale("log", base=2)
