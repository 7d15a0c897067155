"""What the recipes of the small tables share: two kinds of data, one optimiser, and checkpoints to resume from."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from eval.recall import RecallConfig
from seqmodels.data.base import Dataset
from seqmodels.data.mqar import MQAR
from seqmodels.mixers.attention import AttentionConfig, RotaryConfig
from seqmodels.models import BlockConfig, ModelConfig
from seqmodels.sharding import MeshConfig
from seqmodels.train.experiment import CheckpointConfig, Experiment, LogConfig, OptimConfig, TrainConfig

HALF = RotaryConfig(fraction=0.5)
"""Of attention that must learn recall in few steps: with all channels turning by position, the Transformer of the
hybrid study stayed at chance on MQAR for 300 steps, and with half of them it found the key."""
PAIRING = BlockConfig(AttentionConfig(num_heads=2, window=2), mlp=None)
"""A first block that sees two tokens, so that a key with its value is one token when it reaches the memories: recall
then depends on what these hold, and less on how soon they learn to pair."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a cell trains."""

    steps: int
    batch_size: int
    learning_rates: tuple[float, ...]
    """All of them are tried; the best one on held-out data is shown."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon finds recall in a fraction of the steps; AdamW left laptop-sized models at chance after 400."""


def small(
    name: str, model: ModelConfig, data: Dataset, budget: Budget, rate: float, seed: int, *tasks: Any
) -> Experiment:
    """An experiment on one device: a tenth of warm-up, cosine to a tenth; the tasks run at the end."""
    every = max(1, budget.steps // 10)
    return Experiment(
        name=name,
        model=model,
        data=data,
        optim=OptimConfig(name=budget.optimizer, learning_rate=rate, warmup_steps=budget.steps // 10),
        train=TrainConfig(
            steps=budget.steps,
            batch_size=budget.batch_size,
            seed=seed,
            eval_batches=max(1, 512 // budget.batch_size) if budget.steps > 10 else 1,
            sample_every=-1,
        ),
        mesh=MeshConfig(data=1),
        checkpoint=CheckpointConfig(every=every, keep_last=1, keep_best=False),
        log=LogConfig(every=every),
        eval=tasks,
    )


def mqar(vocab_size: int, seq_len: int, num_pairs: tuple[int, ...]) -> MQAR:
    """MQAR with queries spread evenly, so that the distance matters less than the number of pairs.

    In a small vocabulary random tokens between the queries would often be pairs of their own; filler stands there.
    """
    random = vocab_size >= 1024
    return MQAR(vocab_size=vocab_size, seq_len=seq_len, num_pairs=num_pairs, power_a=1.0, random_non_queries=random)


def recall(examples: int) -> RecallConfig:
    """The score of `mqar` by number of pairs, on rows that were never trained on."""
    return RecallConfig(examples=examples, batch_size=min(examples, 64))
