"""Handwritten digits of 8 x 8 pixels, read pixel by pixel in both directions, with two S4D layers.

Sizes and budget are ours, for a laptop: UNKNOWN to us is what the published runs on MNIST used. For MNIST, prepared by
TFDS beforehand: ``data=MNIST()`` and `dt_max` 0.1; for pixels in random order ``permutation=0``.

Command: ``python train.py --config configs/lra/digits.py``.
Duration: not measured. Expected score: not measured; published on MNIST 99.63 % (S4), permuted 98.70 %.
"""

from configs.lra._recipe import classifier
from seqmodels.data.digits import Digits
from seqmodels.mixers import S4DConfig
from seqmodels.train.experiment import Experiment, OptimConfig, TrainConfig


def get_config() -> Experiment:
    data = Digits()
    return Experiment(
        name="digits",
        model=classifier(data, S4DConfig(dt_max=0.5, bidirectional=True), dim=64, depth=2, numbers=True),
        data=data,
        optim=OptimConfig(learning_rate=4e-3, system_learning_rate=1e-3, warmup_steps=100, weight_decay=0.05),
        train=TrainConfig(steps=1000, batch_size=32, accuracy=True, eval_every=100),
    )
