"""What the recipes of the Long Range Arena (arXiv:2011.04006) share: causal S4D layers that answer at the last token.

Sizes, learning rate and budget are ours, for a laptop. The published S4D recipes are larger and read both ways.
"""

from __future__ import annotations

from seqmodels.data.classification import Classification
from seqmodels.mixers.s4d import S4DConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment, OptimConfig, TrainConfig


def s4d(name: str, data: Classification, depth: int, steps: int, batch_size: int, dt_max: float = 0.1) -> Experiment:
    """`depth` blocks of width 64 without MLP: a layer of S4D has a gated linear unit of its own."""
    return Experiment(
        name=name,
        model=LMConfig(
            dim=64,
            depth=depth,
            pattern=(BlockConfig(S4DConfig(dt_max=dt_max), mlp=None),),
            vocab_size=data.vocab_size,
        ),
        data=data,
        optim=OptimConfig(learning_rate=4e-3, warmup_steps=steps // 10, weight_decay=0.05),
        train=TrainConfig(steps=steps, batch_size=batch_size, eval_every=steps // 10, sample_every=-1),
    )
