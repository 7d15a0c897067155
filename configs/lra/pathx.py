"""Path-X, Pathfinder on 128 x 128 pixels, with six bidirectional S4 layers whose memory is ten times longer.

Command: ``python train.py --config configs/lra/pathx.py``.
Duration: not measured. Expected score: not measured; published 96.35 % (S4-LegS), on pictures of another generator.
"""

from configs.lra._recipe import classifier, published, s4
from seqmodels.data.pathfinder import Pathfinder
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    data = Pathfinder(seq_len=16_384, train_examples=160_000, heldout_examples=20_000)
    model = classifier(data, s4(dt_min=1e-4), numbers=True)
    return published("pathx", model, data, learning_rate=0.001, batch_size=16, steps=500_000)
