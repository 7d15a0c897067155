"""Gated DeltaNet at 340M, pure: 21 layers, three heads of 256 (0.75 of the width).

Command: ``python train.py --config configs/lm/gated_deltanet_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("gated_deltanet_340m", block(GatedDeltaNetConfig(num_heads=3)), depth=21)
