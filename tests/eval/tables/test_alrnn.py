"""The AL-RNN table: its cells, its measures on known maps, and claims that fail on rows that contradict them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs.tables import _alrnn as recipe
from configs.tables._alrnn import INTERVAL, LORENZ, MINIMAL, ROSSLER
from eval.reconstruction import References, centre_distance, median, regions, share
from eval.tables import alrnn, command
from eval.tables.claims import broken, judge
from eval.tables.command import SCALES, distinct
from eval.tables.rows import Rows, from_csv, to_csv
from seqmodels.config import from_json, to_json
from seqmodels.data.dynamics import Lorenz63
from seqmodels.models.alrnn_analysis import Map

SEEDS = range(5)


@pytest.mark.parametrize("scale", SCALES)
def test_cells(scale):
    cells = distinct(alrnn.cells(scale))
    for cell in cells:
        assert from_json(to_json(cell.job)) == cell.job
        if cell.labels["rectified"] != alrnn.REFERENCE:
            training = cell.job.training
            assert training.model.rectified == cell.labels["rectified"]
            assert cell.labels["interval"] == (training.interval or alrnn.NEVER)
    for system, least in MINIMAL.items():
        tried = {cell.labels["rectified"] for cell in cells if cell.labels["system"] == system}
        assert {least - 1, least, alrnn.REFERENCE} <= tried


def test_the_paper_scale_is_the_published_recipe():
    lorenz, rossler = (recipe.recipe("paper", system, 2, INTERVAL[system]) for system in (LORENZ, ROSSLER))
    found = [
        (c.model.units, c.learning_rate, c.window, c.interval, c.epochs, c.noise, c.batches_per_epoch, c.batch_size)
        for c in (lorenz, rossler)
    ]
    assert found == [(20, 1e-3, 200, 16, 2000, 0.05, 50, 16), (20, 5e-3, 300, 8, 3000, 0.05, 50, 16)]


def test_one_cell_of_a_few_updates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "COMMITTED", tmp_path / "committed")
    words = ["--scale", "tiny", "--cells", "roessler_p1*"]
    with pytest.raises(SystemExit):  # a claim fails after so little training, or is not measured
        command.entry(alrnn.TABLE)([*words, "--out", str(tmp_path / "out"), "--publish"])
    assert "cell 1 of 1" in capsys.readouterr().out
    (row,) = from_csv((tmp_path / "out/results.csv").read_text())
    expected = {f"dynamics/{name}@{seed}" for name in ("d_stsp", "d_h", "prediction_error") for seed in (0, 1)}
    assert expected <= set(row) and row["dynamics/d_stsp"] > 0
    assert (tmp_path / "committed/alrnn/tiny/figure.png").stat().st_size > 10_000


# Measures


def test_references_tell_a_true_trajectory_from_a_cloud(tmp_path):
    flow = Lorenz63(train_rows=3000, valid_rows=2, test_rows=3000)
    found = References(flow, 2000).run(tmp_path)
    assert found["reference/d_stsp_sample"] < 0.6 * found["reference/d_stsp_cloud"]
    assert found["reference/d_h_sample"] < 0.2 < found["reference/d_h_cloud"]


def test_distance_of_fixed_points_to_the_centres():
    """A map with a fixed point at one lobe's centre in each of two regions of a unit that copies x."""
    flow = Lorenz63(train_rows=3000, valid_rows=2, test_rows=2)
    right, left = flow.standardised(flow.centres())
    # z' = h + W phi(z); the last unit is x itself, and its ReLU switches between the centres.
    slope = (right - left) / right[0]
    W = np.zeros((4, 4))
    W[:3, 3], W[3, 3] = slope, slope[0]
    offset = np.append(left, left[0])
    system = Map(np.zeros(4), W, offset, 1)
    assert centre_distance(system, [0, 1], flow) == pytest.approx(0, abs=1e-9)
    apart = np.linalg.norm(right - left)
    assert centre_distance(system, [0], flow) == pytest.approx(apart)
    assert centre_distance(system, [], flow) == np.inf


def test_rare_regions_do_not_count():
    sequence = np.repeat([3, 1, 2], [5000, 4996, 4])
    assert regions(sequence) == [1, 3]
    assert share(sequence, 2) == pytest.approx(0.9996) and share(sequence, 5) == 1


def test_medians():
    assert median([3.0, 1.0, 2.0]) == 2 and median([1.0, 2.0, 3.0, 4.0]) == 2.5
    assert median([1.0, np.nan, np.inf]) == np.inf


# Claims


def study(change=lambda row: row):
    """Rows that agree with every claim."""
    scores = {LORENZ: (12.0, 9.0, 2.8, 2.7), ROSSLER: (11.0, 1.0, 0.9)}
    entries = [(system, p, INTERVAL[system], s) for system, found in scores.items() for p, s in enumerate(found)]
    entries += [(LORENZ, MINIMAL[LORENZ], interval, 6.0) for interval in (1, alrnn.NEVER)]
    rows = []
    for system, rectified, interval, score in entries:
        values = {
            "d_stsp": score,
            "d_h": 0.1,
            "prediction_error": 0.1,
            "regions": 3.0 if system == LORENZ else 2.0,
            "share_of_three": 0.97,
            "centre_distance": 0.3,
            "lyapunov": alrnn.EXPONENT[system],
        }
        labels = {"system": system, "rectified": rectified, "interval": interval, "seed": 0}
        single = {f"dynamics/{name}@{seed}": value for name, value in values.items() for seed in SEEDS}
        rows.append(labels | single | {f"dynamics/{name}": value for name, value in values.items()})
    for system in INTERVAL:
        labels = {"system": system, "rectified": alrnn.REFERENCE, "interval": alrnn.REFERENCE, "seed": 0}
        numbers = {"d_stsp_sample": 0.5, "d_h_sample": 0.05, "d_stsp_cloud": 5.0, "d_h_cloud": 0.9}
        rows.append(labels | {f"reference/{name}": value for name, value in numbers.items()})
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


def setting(name, value, system, rectified, seeds=SEEDS, interval=None):
    """A change of a metric of an entry, for its median and some of its seeds; ``None`` leaves it out."""
    names = [f"dynamics/{name}", *(f"dynamics/{name}@{seed}" for seed in seeds)]
    where = (system, rectified, interval or INTERVAL[system])

    def change(row):
        if (row["system"], row["rectified"], row["interval"]) != where:
            return row
        kept = {key: old for key, old in row.items() if key not in names}
        return kept if value is None else kept | dict.fromkeys(names, value)

    return change


def test_claims_hold_on_rows_that_agree_with_them():
    rows = study()
    for found in (rows, from_csv(to_csv(rows))):
        verdicts = [judge(claim, found) for claim in alrnn.CLAIMS]
        assert all(v.status == ("holds" if v.claim.asserted else "reported") for v in verdicts), verdicts
        assert all("Yes" in v.evidence for v in verdicts if not v.claim.asserted)


BAD = [
    ("Lorenz-63 is reconstructed", setting("d_stsp", 5.0, LORENZ, 2)),
    ("Lorenz-63 is reconstructed", setting("d_stsp", 5.0, LORENZ, 1)),
    ("Lorenz-63 is reconstructed", setting("d_stsp", 0.5, LORENZ, 3)),
    ("Lorenz-63 is reconstructed", setting("d_stsp", 9.0, LORENZ, 3)),
    ("Rössler is reconstructed", setting("d_stsp", None, ROSSLER, 1)),
    ("Rössler is reconstructed", setting("d_stsp", 1.9, ROSSLER, 0)),
    ("Lorenz-63 with P = 2 uses", setting("regions", 4.0, LORENZ, 2, range(3))),
    ("Rössler with P = 1 uses", setting("regions", 1.0, ROSSLER, 1)),
    ("The centres", setting("centre_distance", 0.7, LORENZ, 2, range(3))),
    ("The centres", setting("centre_distance", None, LORENZ, 2, range(3))),
    ("Lorenz-63 with P = 2 scores", setting("d_stsp", 3.6, LORENZ, 2)),
    ("Lorenz-63 with P = 2 scores", setting("d_h", 0.2, LORENZ, 2)),
]


@pytest.mark.parametrize(("text", "change"), BAD, ids=[text for text, _ in BAD])
def test_claims_fail_on_rows_that_contradict_them(text, change):
    bad = broken([judge(claim, study(change)) for claim in alrnn.CLAIMS], partial=True)
    assert [v for v in bad if v.claim.text.startswith(text) and any(c.isdigit() for c in v.evidence)], bad


def test_every_asserted_claim_can_fail():
    reached = {claim.text for text, _ in BAD for claim in alrnn.CLAIMS if claim.text.startswith(text)}
    assert reached == {claim.text for claim in alrnn.CLAIMS if claim.asserted}


def test_reports_say_no():
    worse = study(setting("lyapunov", 0.5, LORENZ, 2))
    assert [judge(c, worse).evidence[:3] for c in alrnn.CLAIMS if not c.asserted] == ["Yes", "No:", "Yes"]
    spread = study(setting("share_of_three", 0.9, LORENZ, 2, range(3)))
    assert [judge(c, spread).evidence[:3] for c in alrnn.CLAIMS if not c.asserted] == ["No:", "Yes", "Yes"]
    better = study(setting("d_stsp", 1.0, LORENZ, 2, interval=alrnn.NEVER))
    assert [judge(c, better).evidence[:3] for c in alrnn.CLAIMS if not c.asserted] == ["Yes", "Yes", "No:"]


def test_missing_rows_are_not_measured():
    assert {judge(claim, Rows(())).status for claim in alrnn.CLAIMS} == {"not measured"}
    without = study(lambda row: None if row["rectified"] == 1 else row)
    assert [judge(claim, without).status for claim in alrnn.CLAIMS[:2]] == ["not measured"] * 2


def test_markdown_and_figure_show_every_number():
    text = alrnn.markdown(study())
    assert "| Lorenz-63 | 2 | 16 | 2.800 | 2.80–2.80 | 0.100 |" in text and "3.52 / 3.21" in text
    assert "| Lorenz-63 | 2 | never | 6.000 |" in text and "a Gaussian cloud 5.00" in text
    figure = Figure()
    alrnn.draw(study(), figure)
    assert [axes.get_title() for axes in figure.axes] == [LORENZ, ROSSLER]
    assert all(axes.get_xlabel() and axes.get_ylabel() and len(axes.lines) >= 4 for axes in figure.axes)
    alrnn.draw(Rows(()), Figure())
