"""An experiment: frozen dataclasses that say everything about one training run.

The docstring under every field is what ``--help`` prints.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from seqmodels.data.base import Dataset
from seqmodels.errors import UserError
from seqmodels.models import ModelConfig
from seqmodels.sharding import MeshConfig

__all__ = [
    "CheckpointConfig",
    "Experiment",
    "LogConfig",
    "MeshConfig",
    "OptimConfig",
    "TrainConfig",
]


def _require(ok: bool, field: str, value: object, expected: str) -> None:
    if not ok:
        flag = "--" + field.replace("_", "-")
        raise UserError(f"{field}={value!r} must be {expected}; set {flag}")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    """Update rule. Muon serves matrices inside blocks; everything else then gets AdamW."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up from zero."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After warm-up: cosine decay to the end, warm-up-stable-decay (flat, then linear decay), or flat."""
    final_fraction: float = 0.1
    """Learning rate at the last step, as a fraction of the peak (cosine and wsd)."""
    decay_fraction: float = 0.2
    """Share of all steps that wsd spends decaying."""
    weight_decay: float = 0.1
    """Decoupled weight decay, multiplied by the learning rate; applied to matrices, not to norms, biases or decays."""
    b1: float = 0.9
    """Decay of the first moment (Lion: weight of the momentum in the update; Adafactor has none)."""
    momentum: float = 0.95
    """Of Muon's matrices."""
    b2: float = 0.95
    """Decay of the second moment (Lion: of its momentum)."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    system_learning_rate: float | None = None
    """Peak learning rate of the systems of S4, S4D and S5 (eigenvalues, inputs, step sizes), on the same schedule;
    ``None``: that of all others. Published recipes give them a smaller one. None of them decays, whatever it is."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 turns clipping off."""

    def __post_init__(self) -> None:
        _require(0 < self.learning_rate < math.inf, "optim.learning_rate", self.learning_rate, "positive and finite")
        _require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "at least 0")
        for field in ("final_fraction", "decay_fraction"):
            value = getattr(self, field)
            _require(0 <= value <= 1, f"optim.{field}", value, "between 0 and 1")
        for field in ("b1", "b2", "momentum"):
            _require(0 <= getattr(self, field) < 1, f"optim.{field}", getattr(self, field), "at least 0 and below 1")
        for field in ("weight_decay", "clip_norm"):
            _require(getattr(self, field) >= 0, f"optim.{field}", getattr(self, field), "at least 0")
        system = self.system_learning_rate
        _require(system is None or 0 < system < math.inf, "optim.system_learning_rate", system, "positive and finite")
        _require(self.eps > 0, "optim.eps", self.eps, "positive")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, batch, loss, and what happens beside the steps."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 8
    """Sequences per optimiser step, over all devices and processes."""
    accumulate: int = 1
    """Micro-batches per optimiser step; the result equals that of the whole batch at once."""
    seed: int = 0
    """Of the initialisation and of the data order."""
    label_smoothing: float = 0.0
    """Share of the target's probability spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of the squared log-partition function, which keeps logits small."""
    accuracy: bool = False
    """Report next-token accuracy while training too; costs one more pass through the head."""
    eval_every: int = 0
    """Steps between evaluations on held-out data; 0 evaluates at the end only, -1 never."""
    eval_batches: int = 16
    """Held-out batches per evaluation."""
    report_length: int = 0
    """Tokens that the model sees at once when a finished run is scored on the test files; 0 is the training length."""
    sample_every: int = 0
    """Steps between printed samples; 0 samples at the end only, -1 never."""
    sample_prompt: str = ""
    """What samples continue; empty begins a document."""
    sample_tokens: int = 200
    """Tokens per sample."""
    sample_temperature: float = 0.8
    """Of samples; 0 takes the likeliest token."""

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "accumulate", "eval_batches", "sample_tokens"):
            _require(getattr(self, field) >= 1, f"train.{field}", getattr(self, field), "at least 1")
        for field in ("eval_every", "sample_every"):
            _require(getattr(self, field) >= -1, f"train.{field}", getattr(self, field), "at least -1")
        for field in ("z_loss", "sample_temperature", "seed", "report_length"):
            _require(getattr(self, field) >= 0, f"train.{field}", getattr(self, field), "at least 0")
        _require(0 <= self.label_smoothing < 1, "train.label_smoothing", self.label_smoothing, "at least 0 and below 1")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.batch_size={self.batch_size} must be a multiple of train.accumulate={self.accumulate}; "
                "set --train.batch-size or --train.accumulate"
            )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    every: int = 500
    """Steps between checkpoints; 0 writes one at the end only, -1 never."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_best: bool = True
    """Keep the one with the lowest held-out loss too."""
    asynchronous: bool = True
    """Write in the background while training goes on."""

    def __post_init__(self) -> None:
        _require(self.every >= -1, "checkpoint.every", self.every, "at least -1")
        _require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where numbers go."""

    every: int = 10
    """Steps between lines of metrics.jsonl."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; offline needs neither network nor account."""
    project: str = "seqmodels"
    """Weights & Biases project."""
    profile_at: int = 0
    """Step at which a profiler trace starts; 0 means never."""
    profile_steps: int = 3
    """Steps in the trace."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, "log.every", self.every, "at least 1")
        _require(self.profile_at >= 0, "log.profile_at", self.profile_at, "at least 0")
        _require(self.profile_steps >= 1, "log.profile_steps", self.profile_steps, "at least 1")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything about one training run."""

    name: str
    """Of the run, in logs and directories."""
    model: ModelConfig
    """Architecture: a language model, or a classifier for data with a label per row."""
    data: Dataset
    """What it learns from."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """Optimiser."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """Length, batch and loss."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """Devices."""
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    """Checkpoints."""
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    """Numbers."""
    eval: tuple[Any, ...] = ()
    """Tasks with ``run(model, params, data) -> dict[str, float]``, run after every evaluation on held-out data."""

    def __post_init__(self) -> None:
        plain = self.name.strip() not in ("", ".", "..") and not {"/", "\\", "\0"} & set(self.name)
        _require(plain, "name", self.name, "the name of one folder, such as 'hybrid'")
