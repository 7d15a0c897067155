"""The cells of the study of LMUFormer (arXiv:2402.04882): an LMU alone, with its embedding, its MLP, its spikes.

`get_config` is one of them, LMUFormer on digits at laptop scale; ``python -m eval.tables.lmuformer`` runs them all.

Command: ``python train.py --config configs/tables/lmuformer.py``.
Duration: 50 seconds on a core. Expected score: accuracy 0.99.

The classifiers read pictures of digits pixel by pixel and average over positions. As everywhere here, the embedding
looks back only and nothing is normalised by statistics of a batch (see `seqmodels.mixers.lmu`). All of the spiking
model spikes but its head.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from configs.tables._recipe import Budget, small
from eval.classification import ClassificationConfig
from seqmodels.data.digits import MNIST, Digits
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers import ConvEmbeddingConfig, LMUConfig, SpikingMLPConfig
from seqmodels.models import BlockConfig, ClassifierConfig
from seqmodels.train.experiment import Experiment

LMU, EMBEDDED, LMUFORMER, SPIKING = "LMU", "LMU + embedding", "LMUFormer", "spiking LMUFormer"
VARIANTS = (LMU, EMBEDDED, LMUFORMER, SPIKING)


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the models and the task of a scale."""

    dim: int
    memory_size: int
    """Twice that in the spiking model, as published for speech."""
    data: Literal["digits", "permuted MNIST"]
    """scikit-learn's 8 x 8 digits row by row, or MNIST (prepared by TFDS beforehand) in a random order."""
    budget: Budget
    seeds: int = 3


SIZES = {
    "tiny": Size(16, 8, "digits", Budget(3, 4, (3e-3,)), seeds=1),
    "laptop": Size(64, 32, "digits", Budget(600, 32, (5e-3,), "muon")),
    "gpu": Size(128, 256, "permuted MNIST", Budget(4000, 100, (1e-3, 3e-3))),
    # Published: hidden 346, N = 468, Adam at 1e-3 for 50 epochs of batches of 100, on a 1 x 1 convolution instead of
    # the embedding of speech, with the last step as output where it spikes, and chosen on the test set; ours differ.
    "paper": Size(346, 468, "permuted MNIST", Budget(27_000, 100, (1e-3,))),
}


def model(variant: str, size: Size, length: int) -> ClassifierConfig:
    """The classifier of a variant, for pictures of `length` pixels."""
    spiking = variant == SPIKING
    memory = LMUConfig(size.memory_size * (1 + spiking), window=float(length), spiking=spiking)
    mlp = MLPConfig(hidden=4 * size.dim, activation="gelu") if variant == LMUFORMER else None
    embedding = () if variant == LMU else (BlockConfig(ConvEmbeddingConfig(spiking=spiking), mlp=None),)
    channels = (BlockConfig(SpikingMLPConfig(), mlp=None),) if spiking else ()
    pattern = (*embedding, BlockConfig(memory, mlp), *channels)
    return ClassifierConfig(size.dim, len(pattern), pattern, num_classes=10)


def experiment(scale: str, variant: str, rate: float, seed: int, name: str) -> Experiment:
    """A cell."""
    size = SIZES[scale]
    data = Digits() if size.data == "digits" else MNIST(permutation=0)
    return small(name, model(variant, size, data.pixels), data, size.budget, rate, seed, ClassificationConfig())


def get_config() -> Experiment:
    return experiment("laptop", LMUFORMER, 5e-3, 0, "lmuformer")
