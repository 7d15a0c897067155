"""Multi-query associative recall with two Gated DeltaNet layers: can a linear-time model look things up?

Command: ``python train.py --config configs/recall/mqar.py``, then
``python -m eval.run --run runs/mqar --tasks recall``.
Duration: not measured. Expected score: not measured.
"""

from seqmodels.data.mqar import MQAR
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment, OptimConfig, TrainConfig


def get_config() -> Experiment:
    return Experiment(
        name="mqar",
        model=LMConfig(
            dim=64,
            depth=2,
            pattern=(BlockConfig(GatedDeltaNetConfig(num_heads=2, head_dim=32, expand_v=1.0), mlp=None),),
            vocab_size=256,
        ),
        data=MQAR(vocab_size=256, seq_len=64, num_pairs=(4, 8, 16)),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=100, weight_decay=0.1),
        train=TrainConfig(steps=2000, batch_size=64, sample_every=-1),
    )
