"""S4D at 340M, pure: 28 layers.

Command: ``python train.py --config configs/lm/s4d_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.s4d import S4DConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("s4d_340m", block(S4DConfig()), depth=28)
