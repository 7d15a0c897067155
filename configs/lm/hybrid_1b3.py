"""Three Gated DeltaNet layers to one of full attention at 1.3B, 20 layers.

Command: ``python train.py --config configs/lm/hybrid_1b3.py`` (multiples of 16 devices, such as a v5e 16x16 slice).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_1b3, block
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_1b3(
        "hybrid_1b3",
        *[block(GatedDeltaNetConfig(num_heads=6))] * 3,
        block(AttentionConfig(num_heads=16)),
        depth=20,
    )
