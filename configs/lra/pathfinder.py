"""Pathfinder in its hard form on 32 x 32 pixels with six bidirectional S4 layers: are the two discs on one path?

Pixels are numbers, not tokens. A small form for a laptop is in ``configs/tables/lra.py``.

Command: ``python train.py --config configs/lra/pathfinder.py``.
Duration: not measured. Expected score: not measured; published 94.20 % (S4-LegS), on pictures of another generator.
"""

from configs.lra._recipe import classifier, published, s4
from seqmodels.data.pathfinder import Pathfinder
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    data = Pathfinder(train_examples=160_000, heldout_examples=20_000)
    model = classifier(data, s4(), numbers=True)
    return published("pathfinder", model, data, learning_rate=0.004, batch_size=64, steps=500_000)
