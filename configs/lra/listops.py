"""Short ListOps with four S4D layers: does the model get past what the root operator alone tells?

Expressions of 100 to 300 tokens, at most 6 levels deep; for the published task take ``data=ListOps()``. The plateau
that counts is ``seqmodels.data.listops.root_accuracy`` of the data; accuracy is reported by root operator too.

Command: ``python train.py --config configs/lra/listops.py``.
Duration: not measured. Expected score: not measured.
"""

from configs.lra._recipe import s4d
from seqmodels.data.listops import ListOps
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    data = ListOps(seq_len=304, lengths=(100, 300), max_depth=6)
    return s4d("listops", data, depth=4, steps=5000, batch_size=32)
