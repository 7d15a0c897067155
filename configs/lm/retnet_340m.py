"""RetNet at 340M, pure: 24 layers with an MLP of ratio 2, as its values are twice as wide.

Command: ``python train.py --config configs/lm/retnet_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.retnet import RetNetConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("retnet_340m", block(RetNetConfig(num_heads=4), mlp_ratio=2.0))
