"""Gated linear attention at 340M, pure: 24 layers.

Command: ``python train.py --config configs/lm/gla_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.gla import GLAConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("gla_340m", block(GLAConfig(num_heads=4)))
