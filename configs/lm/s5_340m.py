"""S5 at 340M, pure: 30 layers.

Command: ``python train.py --config configs/lm/s5_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.s5 import S5Config
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("s5_340m", block(S5Config()), depth=30)
