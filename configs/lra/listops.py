"""ListOps at its published size with six bidirectional S4 layers: nested lists of 501 to 1999 tokens.

The plateau that counts is ``seqmodels.data.listops.root_accuracy`` of the data, 37 %: what the root operator alone
tells. A short form for a laptop is in ``configs/tables/lra.py``.

Command: ``python train.py --config configs/lra/listops.py``.
Duration: not measured. Expected score: not measured; published 59.60 % (S4-LegS).
"""

from configs.lra._recipe import classifier, published, s4
from seqmodels.data.listops import ListOps
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    data = ListOps(seq_len=2048, train_examples=96_000)
    model = classifier(data, s4(state_size=4))
    return published("listops", model, data, learning_rate=0.01, batch_size=32, steps=120_000)
