"""Mixture of memories over Gated DeltaNet at the paper's smaller scale (arXiv:2502.13685): 24 layers of width 1024.

From the paper and its code: four heads of 256, four memories of which a token uses two, a shared memory, MLPs of width
2048, tied embeddings, 32,000 tokens, 0.5 million tokens per step, learning rate 3e-4, 30,720 steps, 1,024 of warm-up.
The balance loss is the pooled one of its code with factor 0.01; the paper's table fits 0.001 better. We count 512
million parameters; the paper calls the scale 380M and prints no count for this shape.

Command: ``python train.py --config configs/lm/mom.py`` (eight devices, or --mesh.fsdp 1 on one).
Duration: not measured. Expected score: not measured.
"""

import dataclasses

from configs.lm._recipe import at_340m
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers.mixture_of_memories import MixtureOfMemoriesConfig
from seqmodels.models import BlockConfig
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    block = BlockConfig(MixtureOfMemoriesConfig(balance="pooled"), MLPConfig(hidden=2048))
    experiment = at_340m("mom", block)
    optim = dataclasses.replace(experiment.optim, learning_rate=3e-4, warmup_steps=1024)
    return dataclasses.replace(experiment, optim=optim, train=dataclasses.replace(experiment.train, steps=30_720))
