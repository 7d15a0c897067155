"""Generated tasks at other lengths: which rows are asked, how they are counted, and what is refused."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from eval import base
from eval.base import Scores, discover
from eval.lengths import LengthsConfig
from seqmodels.data.induction import InductionHeads
from seqmodels.data.passkey import Passkey
from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.errors import UserError


def test_rows_of_every_length_are_asked(monkeypatch):
    seen = {}

    def even(model, params, batch):
        rows = (batch["loss_mask"] > 0).any(axis=1)
        seen[batch["tokens"].shape[1]] = seen.get(batch["tokens"].shape[1], 0) + int(rows.sum())
        return Scores(np.zeros_like(batch["loss_mask"]), batch["targets"] % 2 == 0)

    monkeypatch.setattr(base, "score", even)
    data = InductionHeads(seq_len=16)
    results = LengthsConfig(factors=(1, 4), examples=10, batch_size=4).run(None, None, data)  # type: ignore[arg-type]
    assert seen == {16: 10, 64: 10}
    rows = [InductionHeads(seq_len=64, heldout_examples=10).rows("test", 0)[i] for i in range(10)]
    share = np.mean([row["targets"][-1] % 2 == 0 for row in rows])
    assert results["lengths/accuracy@64"] == pytest.approx(share) and set(results) == {
        "lengths/accuracy@16",
        "lengths/accuracy@64",
    }
    assert discover()["lengths"] is LengthsConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LengthsConfig().run(None, None, StdlibCorpus()), "--tasks lengths cannot draw rows of StdlibCorpus"),  # type: ignore[arg-type]
        (lambda: LengthsConfig().run(None, None, Passkey()), "use --tasks passkey"),  # type: ignore[arg-type]
        (lambda: LengthsConfig(factors=(0,)), r"lengths.factors=\(0,\) must be numbers of at least 1"),
        (lambda: LengthsConfig(examples=0), "lengths.examples=0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_plot_shows_every_result():
    axes = Figure().subplots()
    LengthsConfig().plot({"lengths/accuracy@16": 1.0, "lengths/accuracy@64": 0.5}, axes)
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[16, 1.0], [64, 0.5]]]
