"""The hybrid study's Transformer baseline: softmax attention in all of 24 layers.

Command: ``python train.py --config configs/lm/transformer_340m.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

from configs.lm._recipe import at_340m, block
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return at_340m("transformer_340m", block(AttentionConfig(num_heads=16)))
