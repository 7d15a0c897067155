"""Questions about the context: their format, their counting, and which models can be asked."""

import numpy as np
import pytest

from eval import base, passkey, recall
from eval.base import Scores, SliceScores, discover, score_slices
from eval.passkey import PasskeyConfig
from eval.recall import DIGITS, RecallConfig, TextRecall
from seqmodels.data.mqar import MQAR
from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.errors import UserError


def test_tasks_are_found_by_module():
    assert {"perplexity", "recall", "passkey"} <= set(discover())


# Counting


class Oracle:
    """Scores that are right where a rule says so; takes the place of `eval.base.score`."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, model, params, batch):
        return Scores(np.zeros_like(batch["loss_mask"]), self.rule(batch))


def test_slices_are_counted_and_padding_rows_are_not(monkeypatch):
    data = MQAR(vocab_size=64, seq_len=32, num_pairs=(2, 4), heldout_examples=21)
    monkeypatch.setattr(base, "score", Oracle(lambda batch: batch["targets"] % 2 == 0))
    scores = score_slices(None, None, data, data.make("test", batch_size=8, repeat=False))  # type: ignore[arg-type]
    rows = [data.rows("test", 0)[i] for i in range(21)]
    for index, pairs in enumerate(data.num_pairs):
        mine = [row for row in rows if row["slices"] == index]
        answers = np.array([row["targets"][row["loss_mask"] > 0] for row in mine])
        assert scores.rows[index] == len(mine) > 0 and scores.tokens[index] == pairs * len(mine)
        assert scores.correct[index] == (answers % 2 == 0).sum()
        assert scores.exact[index] == (answers % 2 == 0).all(axis=1).sum()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_and_nothing(monkeypatch, share):
    monkeypatch.setattr(base, "score", Oracle(lambda batch: np.full(batch["targets"].shape, bool(share))))
    text = StdlibCorpus(seq_len=128)
    found = RecallConfig(examples=40).run(None, None, text) | PasskeyConfig(examples=40).run(None, None, text)  # type: ignore[arg-type]
    assert set(found.values()) == {share}
    assert {"recall/accuracy@16", "recall/exact@1", "passkey/exact@length 256 depth 0.25"} <= set(found)


def test_mqar_models_are_asked_mqar(monkeypatch):
    seen = {}

    def capture(model, params, questions, stream):
        seen["questions"] = questions
        return SliceScores(*np.ones((4, len(questions.slice_names)), np.int64))

    monkeypatch.setattr(recall, "score_slices", capture)
    data = MQAR(vocab_size=64, seq_len=64, num_pairs=(2, 4), power_a=0.5)
    results = RecallConfig(num_pairs=(2, 8), examples=9).run(None, None, data)  # type: ignore[arg-type]
    assert seen["questions"] == MQAR(vocab_size=64, seq_len=64, num_pairs=(2, 8), power_a=0.5, heldout_examples=9)
    assert set(results) == {"recall/accuracy"} | {
        f"recall/{kind}@{n} pairs" for kind in ("accuracy", "exact") for n in (2, 8)
    }


def test_models_of_other_tokens_cannot_be_asked_in_bytes():
    with pytest.raises(UserError, match=r"--tasks passkey asks questions as bytes, but .* MQAR"):
        PasskeyConfig().run(None, None, MQAR())  # type: ignore[arg-type]


# Format


def test_text_recall_is_valid_python_that_answers_itself():
    data = TextRecall(num_pairs=(1, 3, 9), seq_len=TextRecall.length(9), heldout_examples=30)
    seen = set()
    for i in range(30):
        row = data.rows("test", 0)[i]
        size, pairs = int(row["segment_ids"].sum()), data.num_pairs[int(row["slices"])]
        text = bytes(row["tokens"][1:size].astype(np.uint8)).decode()  # the last newline is no input
        scope: dict = {}
        exec(text, scope)
        assert len(scope["table"]) == pairs
        assert row["tokens"][0] == data.tokenizer.bos_id
        masked = np.flatnonzero(row["loss_mask"])
        assert len(masked) == pairs * DIGITS
        assert (row["targets"][masked[:-1]] == row["tokens"][masked[:-1] + 1]).all()
        answers = bytes(row["targets"][masked].astype(np.uint8)).decode()
        values = [answers[j : j + DIGITS] for j in range(0, len(answers), DIGITS)]
        assert sorted(map(int, values)) == sorted(scope["table"].values())
        seen.add(pairs)
    assert seen == {1, 3, 9}
    assert int(data.rows("test", 0)[0]["segment_ids"].sum()) <= TextRecall.length(9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextRecall(num_pairs=(0,)), r"recall.num_pairs=\(0,\)"),
        (lambda: TextRecall(num_pairs=(50,)), "cannot hold 50 pairs"),
        (lambda: RecallConfig(examples=0), "recall.examples=0"),
        (lambda: PasskeyConfig(batch_size=0), "passkey.batch_size=0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(UserError, match=message):
        make()


# Figures


def test_plots_show_every_result():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    RecallConfig().plot({"recall/accuracy": 0.5, "recall/accuracy@1": 1.0, "recall/exact@1": 0.5}, axes)
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1.0], [0.5]]
    axes = Figure().subplots()
    cells = {f"passkey/exact@length {n} depth {d}": n * d / 512 for n in (256, 512) for d in (0, 0.5, 1)}
    passkey.PasskeyConfig().plot(cells, axes)
    np.testing.assert_allclose(axes.images[0].get_array(), [[0, 0], [0.25, 0.5], [0.5, 1]])
