"""A byte-level hybrid language model on the standard library's source: three Gated DeltaNet blocks to one of attention.

Command: ``make quickstart``, or ``python train.py --config configs/quickstart.py``.
Duration: 6 minutes on two CPU cores of an AMD EPYC. Expected score: 1.55 held-out bits per byte (zlib: 1.92).
"""

from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import CheckpointConfig, Experiment, LogConfig, OptimConfig, TrainConfig


def get_config() -> Experiment:
    mlp = MLPConfig(ratio=3.0, multiple_of=32)
    linear = BlockConfig(GatedDeltaNetConfig(num_heads=2, head_dim=32), mlp)
    window = BlockConfig(AttentionConfig(num_heads=4, window=128), mlp)
    return Experiment(
        name="quickstart",
        model=LMConfig(dim=128, depth=4, pattern=(linear, linear, linear, window), scan=False),
        data=StdlibCorpus(seq_len=128),
        optim=OptimConfig(name="muon", learning_rate=7e-3, momentum=0.85, warmup_steps=50, final_fraction=0.02),
        train=TrainConfig(
            steps=900, batch_size=16, eval_every=450, eval_batches=32, report_length=512, sample_prompt="def "
        ),
        checkpoint=CheckpointConfig(every=500),
        log=LogConfig(every=10),
    )
