"""A byte-level hybrid language model on the standard library's source: three Gated DeltaNet blocks to one of attention.

Command: ``make quickstart``, or ``python train.py --config configs/quickstart.py``.
Duration: not measured yet (aim: under 6 minutes on two CPU cores). Expected score: held-out bits per byte under 1.75.
"""

from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment, LogConfig, OptimConfig, TrainConfig


def get_config() -> Experiment:
    mlp = MLPConfig(ratio=4.0, multiple_of=32)
    linear = BlockConfig(GatedDeltaNetConfig(num_heads=4, head_dim=32, expand_v=1.0), mlp)
    window = BlockConfig(AttentionConfig(num_heads=4, window=128), mlp)
    return Experiment(
        name="quickstart",
        model=LMConfig(dim=128, depth=4, pattern=(linear, linear, linear, window)),
        data=StdlibCorpus(seq_len=256),
        optim=OptimConfig(learning_rate=4e-3, warmup_steps=50, weight_decay=0.1),
        train=TrainConfig(steps=1500, batch_size=8, eval_every=500, sample_prompt="def "),
        log=LogConfig(every=10),
    )
