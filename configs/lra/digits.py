"""Handwritten digits of 8 x 8 pixels, read pixel by pixel, with two S4D layers.

For MNIST, prepared by TFDS beforehand: ``data=MNIST()``; for pixels in random order ``permutation=0``.

Command: ``python train.py --config configs/lra/digits.py``.
Duration: not measured. Expected score: not measured.
"""

from configs.lra._recipe import s4d
from seqmodels.data.digits import Digits
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return s4d("digits", Digits(), depth=2, steps=1000, batch_size=32, dt_max=0.5)
