"""Movie reviews byte by byte, positive or negative, with six bidirectional S4 layers.

The reviews (IMDB, Maas et al., 2011) must lie unpacked in ``aclImdb``; see `seqmodels.data.labelled_text`, also for a
set that TFDS has prepared. The published recipe has 135 characters instead of 256 bytes, and validates on the test
split.

Command: ``python train.py --config configs/lra/text.py``.
Duration: not measured. Expected score: not measured; published 86.82 % (S4-LegS).
"""

from configs.lra._recipe import classifier, published, s4
from seqmodels.data.labelled_text import LabelledText
from seqmodels.train.experiment import Experiment


def get_config() -> Experiment:
    data = LabelledText(path="aclImdb/train", test_path="aclImdb/test", labels=("neg", "pos"), seq_len=4096)
    model = classifier(data, s4(state_size=4))
    return published("text", model, data, learning_rate=0.01, batch_size=16, steps=50_000)
