"""HGRN at 340M, pure: 24 layers.

Command: ``python train.py --config configs/lm/hgrn_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.hgrn import HGRNConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("hgrn_340m", block(HGRNConfig()))
