"""Passkey retrieval by depth and length: a byte-level model must repeat a number hidden in filler text.

The rows are those of `seqmodels.data.passkey.Passkey` (arXiv:2305.16300). A row is exact when every digit is the first
guess of the model, given the digits before it, which is what greedy generation would print.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from eval.base import Task, require_bytes, score_slices
from seqmodels.data.base import Dataset
from seqmodels.data.passkey import Passkey
from seqmodels.errors import UserError
from seqmodels.models.lm import LanguageModel


@dataclasses.dataclass(frozen=True)
class PasskeyConfig(Task):
    """Exact retrieval by length and depth."""

    lengths: tuple[int, ...] = ()
    """Bytes of a row; by default half, once and twice the length that the model was trained on."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the key stands, as a fraction of the filler."""
    digits: int = 5
    """Of the key."""
    filler: Literal["sentences", "stdlib"] = "sentences"
    """Around the key."""
    examples: int = 240
    """Rows in all; each draws its length and depth."""
    batch_size: int = 8
    """Rows per call."""

    def __post_init__(self) -> None:
        for field in ("examples", "batch_size"):
            if getattr(self, field) < 1:
                flag = f"--passkey.{field.replace('_', '-')}"
                raise UserError(f"passkey.{field}={getattr(self, field)} must be at least 1; set {flag}")

    def measure(self, model: LanguageModel, params: Any, data: Dataset) -> dict[str, float]:
        require_bytes("passkey", data)
        sums: dict[str, tuple[int, int]] = {}
        lengths = self.lengths or tuple(
            max(128, length) for length in (data.seq_len // 2, data.seq_len, 2 * data.seq_len)
        )
        for length in dict.fromkeys(lengths):  # one length at a time: no padding
            questions = Passkey(
                seq_len=length,
                depths=self.depths,
                digits=self.digits,
                filler=self.filler,
                heldout_examples=-(-self.examples // len(lengths)),
            )
            stream = questions.make("test", batch_size=self.batch_size, repeat=False)
            scores = score_slices(model, params, questions, stream)
            for depth, rows, exact in zip(self.depths, scores.rows, scores.exact, strict=True):
                sums[f"length {length} depth {depth:g}"] = (int(exact), int(rows))
        exact, rows = np.sum(list(sums.values()), axis=0)
        return {"exact": float(exact / rows)} | {f"exact@{key}": e / n for key, (e, n) in sums.items() if n}

    def plot(self, results: dict[str, float], axes: Any) -> None:
        cells = {}
        for cell, value in self.curve(results, "exact").items():
            _, length, _, depth = cell.split()
            cells[int(length), float(depth)] = value
        lengths, depths = sorted({length for length, _ in cells}), sorted({depth for _, depth in cells})
        grid = np.array([[cells.get((length, depth), np.nan) for length in lengths] for depth in depths])
        image = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.figure.colorbar(image, ax=axes, label="share that is right")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.set(xlabel="length in bytes", ylabel="depth", title="Passkey")
