"""HGRN2 at 340M, pure: 24 layers, eight heads of 128.

Command: ``python train.py --config configs/lm/hgrn2_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.hgrn2 import HGRN2Config
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("hgrn2_340m", block(HGRN2Config(expand_ratio=128)))
