"""Pathfinder on 32 x 32 pixels, paths of 6 dashes, with four S4D layers: are the two discs on one path?

The published numbers are for the hard form, ``data=Pathfinder()``; Path-X is ``data=Pathfinder(seq_len=16384)``.

Command: ``python train.py --config configs/lra/pathfinder.py``.
Duration: not measured. Expected score: not measured.
"""

from configs.lra._recipe import s4d
from seqmodels.data.pathfinder import Pathfinder
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    return s4d("pathfinder", Pathfinder(contour_length=6), depth=4, steps=10_000, batch_size=32)
