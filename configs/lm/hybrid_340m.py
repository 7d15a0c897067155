"""Three Gated DeltaNet layers to one of full attention at 340M, 20 layers.

Command: ``python train.py --config configs/lm/hybrid_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m(
        "hybrid_340m",
        *[block(GatedDeltaNetConfig(num_heads=3))] * 3,
        block(AttentionConfig(num_heads=16)),
        depth=20,
    )
