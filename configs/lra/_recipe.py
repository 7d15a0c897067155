"""What the recipes of the Long Range Arena (arXiv:2011.04006) share: classifiers of bidirectional S4 layers.

Sizes, steps, batch, learning rates and weight decay are those of the published S4-LegS recipes (state-spaces/s4, the
fourth version of its code): AdamW, cosine with a tenth of warm-up, a mean over valid positions, and 1e-3 without weight
decay for the systems. What differs here: blocks have RMS norms in front, where the published ones have batch norms,
behind the layer for ListOps; step sizes belong to the systems for ListOps and text too. There is no dropout in them.

UNKNOWN, and chosen: where the cosine ends (at zero), AdamW's second beta (0.999), and clipping (at norm 1).
"""

from __future__ import annotations

from seqmodels.data.classification import Classification
from seqmodels.mixers import MixerConfig, S4Config
from seqmodels.models import BlockConfig, ClassifierConfig
from seqmodels.train.experiment import Experiment, OptimConfig, TrainConfig


def s4(state_size: int = 64, dt_min: float = 1e-3) -> S4Config:
    """The layer: both directions, LegS, one system for all channels."""
    return S4Config(state_size=state_size, dt_min=dt_min, bidirectional=True)


def classifier(
    data: Classification, mixer: MixerConfig, *, dim: int = 256, depth: int = 6, numbers: bool = False
) -> ClassifierConfig:
    """Blocks without MLP, as the layers have a gated linear unit of their own.

    Args:
      data: what it must be able to read and answer.
      mixer: of every block.
      dim: width.
      depth: blocks.
      numbers: read tokens as numbers from 0 to 1 (grey values) instead of embedding them.
    """
    return ClassifierConfig(
        dim=dim,
        depth=depth,
        pattern=(BlockConfig(mixer, mlp=None),),
        num_classes=data.num_classes,
        vocab_size=None if numbers else -(-data.vocab_size // 8) * 8,
        levels=max(data.vocab_size, 2),
    )


def published(
    name: str,
    model: ClassifierConfig,
    data: Classification,
    *,
    learning_rate: float,
    batch_size: int,
    steps: int,
    weight_decay: float = 0.05,
    system_learning_rate: float = 1e-3,
) -> Experiment:
    """A published budget; held-out accuracy every hundredth of it."""
    return Experiment(
        name=name,
        model=model,
        data=data,
        optim=OptimConfig(
            learning_rate=learning_rate,
            system_learning_rate=system_learning_rate,
            warmup_steps=steps // 10,
            final_fraction=0.0,
            weight_decay=weight_decay,
            b2=0.999,
        ),
        train=TrainConfig(steps=steps, batch_size=batch_size, accuracy=True, eval_every=steps // 100, eval_batches=32),
    )
