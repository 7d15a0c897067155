"""Mamba-2 at 130M: 24 layers of width 768 without MLPs (arXiv:2405.21060), vocabulary padded to 50,288.

Command: ``python train.py --config configs/lm/mamba2_130m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.mixers.mamba2 import Mamba2Config
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sharding import MeshConfig
from seqmodels.train.experiment import CheckpointConfig, Experiment, OptimConfig, TrainConfig


def get_config() -> Experiment:
    return Experiment(
        name="mamba2_130m",
        model=LMConfig(
            dim=768,
            depth=24,
            pattern=(BlockConfig(Mamba2Config(), mlp=None, norm_eps=1e-5),),
            vocab_size=50288,
            dtype="bfloat16",
            remat="full",
            norm_eps=1e-5,
        ),
        data=StdlibCorpus(seq_len=2048),
        optim=OptimConfig(learning_rate=6e-4, warmup_steps=500),
        train=TrainConfig(steps=10_000, batch_size=256, eval_every=1000, sample_every=-1),
        mesh=MeshConfig(fsdp=8),
        checkpoint=CheckpointConfig(every=1000),
    )
