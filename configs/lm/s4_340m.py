"""S4 at 340M, pure: 28 layers.

Command: ``python train.py --config configs/lm/s4_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.s4 import S4Config
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("s4_340m", block(S4Config()), depth=28)
