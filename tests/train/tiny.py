"""A tiny experiment that trains in a second, and processes that run it (see `child`)."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seqmodels.data.base import ENDLESS, RandomAccessDataset, Row
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sharding import MeshConfig
from seqmodels.train.experiment import CheckpointConfig, Experiment, LogConfig, OptimConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]


class Letters:
    """Token i is the i-th character from A on."""

    vocab_size = 31
    bos_id: int | None = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("A") for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("A") + i) for i in ids)

    def document(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), np.int32)

    def fingerprint(self) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(RandomAccessDataset):
    """Rows count upwards from a random number, modulo 31; some positions carry no loss; there are two slices."""

    seq_len: int = 16
    poisoned_row: int = -1
    """The loss mask of this row is NaN."""
    delay: float = 0.0
    """Seconds that a row takes."""
    letters: bool = False
    """Tokens are text."""

    @property
    def vocab_size(self) -> int:
        return 31

    @property
    def tokenizer(self) -> Letters | None:
        return Letters() if self.letters else None

    @property
    def slice_names(self) -> tuple[str, ...]:
        return ("even", "odd")

    def rows(self, split: str, seed: int) -> Sequence[Row]:
        return CountingRows(self, ("train", "valid", "test").index(split), seed)


class CountingRows(Sequence):
    """Row ``i`` of `Counting`."""

    def __init__(self, cfg: Counting, split: int, seed: int) -> None:
        self.cfg, self.split, self.seed = cfg, split, seed

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Row:  # pyright: ignore[reportIncompatibleMethodOverride]
        time.sleep(self.cfg.delay)
        random = np.random.default_rng([self.seed, self.split, index])
        start = random.integers(31)
        text = ((start + np.arange(self.cfg.seq_len + 1)) % 31).astype(np.int32)
        mask = (random.random(self.cfg.seq_len) < 0.8).astype(np.float32)
        if self.split == 0 and index == self.cfg.poisoned_row:
            mask[3] = np.nan
        return {
            "tokens": text[:-1],
            "targets": np.where(mask == 0, 0, text[1:]).astype(np.int32),
            "loss_mask": mask,
            "segment_ids": np.ones(self.cfg.seq_len, np.int32),
            "slices": np.int32(start % 2),
        }


ATTENTION = BlockConfig(AttentionConfig(num_heads=2))
HYBRID = (BlockConfig(GatedDeltaNetConfig(num_heads=2, head_dim=4)), ATTENTION)


def tiny_model(**changes: Any) -> LMConfig:
    """Two blocks of attention, which traces fastest, of width 16."""
    return dataclasses.replace(LMConfig(vocab_size=32, dim=16, depth=2, pattern=(ATTENTION,)), **changes)


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """An evaluation task that counts parameters."""

    def run(self, model: Any, params: Any, data: Any) -> dict[str, float]:
        return {"count/parameters": float(sum(leaf.size for leaf in jax.tree.leaves(params)))}


def tiny_experiment(**changes: Any) -> Experiment:
    """Twelve steps on one device."""
    experiment = Experiment(
        name="tiny",
        model=tiny_model(),
        data=Counting(),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        train=TrainConfig(steps=12, batch_size=8, eval_every=6, eval_batches=2, sample_every=-1),
        mesh=MeshConfig(data=1),
        checkpoint=CheckpointConfig(every=4),
        log=LogConfig(every=1),
    )
    return dataclasses.replace(experiment, **changes)


class Command(NamedTuple):
    """A command line and its environment."""

    args: list[str]
    env: dict[str, str]


def child_command(run_dir: Path, *arguments: str, cache: Path, **environment: str) -> Command:
    """How to run `tests.train.child`, on one CPU device unless `environment` says otherwise."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "TPU_SKIP_MDS_QUERY": "1", **environment}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return Command([sys.executable, "-m", "tests.train.child", str(run_dir), *arguments], env)


def start(command: Command) -> subprocess.Popen[str]:
    """A process that runs `command` in the repository."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command.args, cwd=ROOT, env=command.env, text=True, stdout=pipe, stderr=pipe)


def start_child(run_dir: Path, *arguments: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """`child_command`, started."""
    return start(child_command(run_dir, *arguments, cache=cache, **environment))


def finish(child: subprocess.Popen[str], code: int | None = 0) -> tuple[str, str]:
    """Wait for a child, check its exit code, and return stdout and stderr."""
    out, err = child.communicate(timeout=240)
    assert code is None or child.returncode == code, f"exit code {child.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    return out, err
