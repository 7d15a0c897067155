"""DeltaNet at 340M, pure: 24 layers, eight heads of 128.

Command: ``python train.py --config configs/lm/deltanet_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.delta_net import DeltaNetConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("deltanet_340m", block(DeltaNetConfig(num_heads=8)))
