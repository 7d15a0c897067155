"""The tables of the Long Range Arena and of HiPPO bases: cells that fit together, and claims that can fail."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs.tables import lra as recipe
from eval.hippo import Memory, band_limited
from eval.tables import command, hippo, lra
from eval.tables.claims import broken, judge
from eval.tables.command import SCALES, distinct
from eval.tables.rows import Rows, from_csv, to_csv
from eval.tables.training import Training, costs
from seqmodels.config import check_types, from_json, to_json
from seqmodels.data.classification import Classification
from seqmodels.errors import UserError
from seqmodels.models import ClassifierConfig
from seqmodels.validate import check_schedule, check_vocabulary

TABLES = (lra.TABLE, hippo.TABLE)


def by_name(table):
    return table.name


# Cells


@pytest.mark.parametrize("scale", SCALES)
def test_cells_are_classifiers_that_fit_their_data(scale):
    cells = distinct(lra.TABLE.cells(scale))
    trained = [(cell, cell.job) for cell in cells if isinstance(cell.job, Training)]
    assert len(trained) == len(cells) - 1 == (6 if scale == "paper" else 15)
    for cell, job in trained:
        experiment = job.experiment
        assert experiment.name == cell.name and cell.labels["seed"] == experiment.train.seed
        assert isinstance(experiment.model, ClassifierConfig) and isinstance(experiment.data, Classification)
        check_types(experiment)
        check_vocabulary(experiment)
        check_schedule(experiment)
    assert from_json(to_json(trained[-1][1])) == trained[-1][1]


def test_models_of_a_task_are_about_as_large():
    for task in recipe.TASKS:
        sizes = {}
        for model in recipe.MODELS:
            made = recipe.experiment("laptop", task, model, 1e-2, 0, "x")
            sizes[model] = costs(made.model, made.data.seq_len)["model/parameters"]
        assert max(sizes.values()) < 2 * min(sizes.values()), (task, sizes)


@pytest.mark.slow
def test_cells_of_a_few_steps(tmp_path, capsys, monkeypatch):
    """From the command line to CSV, Markdown and figure, and the same from the published results."""
    monkeypatch.setattr(command, "COMMITTED", tmp_path / "committed")
    words = ["--scale", "tiny", "--cells", "digits_s4d*"]
    assert command.entry(lra.TABLE)([*words, "--out", str(tmp_path / "out"), "--publish"]) == 0
    assert "cell 1 of 1" in capsys.readouterr().out
    (row,) = from_csv((tmp_path / "out/results.csv").read_text())
    assert {lra.ACCURACY, f"{lra.ACCURACY}@digit 3", "valid/accuracy", "model/parameters"} <= set(row)
    assert command.entry(lra.TABLE)([*words, "--check"]) == 0


def test_memories_of_a_few_states(tmp_path, capsys):
    assert command.entry(hippo.TABLE)(["--scale", "tiny", "--out", str(tmp_path), "--cells", "leg*"]) == 0
    rows = from_csv((tmp_path / "results.csv").read_text())
    assert len(rows) == 6 and "Delay:" in capsys.readouterr().out
    errors = {step: hippo.error(rows, "delay", "legt", step) for step in (1.0, 2.0, 4.0)}
    assert errors[2.0] < 0.01 * errors[4.0] and errors[4.0] > 0.2


def test_signals_and_reconstruction():
    signal = band_limited(3, 400, 0.1)
    power = np.abs(np.fft.rfft(signal)) ** 2
    np.testing.assert_allclose((signal**2).mean(axis=1), 1)
    assert power[:, 21:].max() < 1e-18 * power.max() and power[:, 10:21].max() > 0.01 * power.max()
    fits, tooshort = (Memory("legt", 32, 60, step).reconstruction_error(step / 60) for step in (1.5, 6.0))
    assert fits < 0.02 < 0.3 < tooshort
    with pytest.raises(UserError, match="step=0"):
        Memory("legt", 4, 10, 0)


# Claims


def arena(change=lambda row: row):
    """Rows of the arena that agree with every claim, each passed through `change`."""
    good = {"S4D": 0.6, "S5": 0.62, "Attention": 0.45, "GatedDeltaNet": 0.61, "Mamba2": 0.6}
    lift = {"listops": 0.0, "pathfinder": 0.3, "digits": 0.34}
    rows = [
        {"task": task, "model": model, "learning_rate": rate, "seed": 0}
        | dict.fromkeys((lra.ACCURACY, "valid/accuracy"), value + lift[task] if rate == 1e-2 else 0.1)
        | {"model/parameters": 1e4, "model/flops_per_token": 2e4}
        for task in recipe.TASKS
        for model, value in good.items()
        for rate in (1e-3, 1e-2)
    ]
    rows.append({"task": "listops", "model": lra.REFERENCE, "seed": 0, lra.ROOT: 0.44})
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


LOGS = {  # of delays, by step size times lag: LegS, LegT and FouT
    "legs": (-0.25, -0.38, -0.60, -0.38),
    "legt": (-0.32, -0.74, -3.74, -0.06),
    "fourier": (-0.28, -0.78, -1.91, -0.05),
}


def memories(change=lambda row: row):
    """Rows of the bases that agree with every claim."""
    rows = [
        {"measure": measure, "step": step, "seed": 0}
        | {f"{kind}/log_error": value for kind in hippo.KINDS}
        | {f"{kind}/error": 10**value for kind in hippo.KINDS}
        for measure, values in LOGS.items()
        for step, value in zip((0.5, 1.0, 2.0, 4.0), values, strict=True)
    ]
    for i, basis in enumerate(hippo.DIAGONAL):
        for steps, score in zip(hippo.RANGES, (0.6, 0.9, 0.7), strict=True):
            labels = {"task": "digits", "basis": basis, "steps": steps, "learning_rate": 1e-2, "seed": 0}
            rows.append(labels | {hippo.ACCURACY: score + i / 100, "valid/accuracy": score})
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


def setting(metric, value, **labels):
    """A change that sets `metric` in the rows with these labels."""

    def change(row):
        hit = metric in row and all(row.get(name) == label for name, label in labels.items())
        return row | {metric: value} if hit else row

    return change


def at_one_step(kind):
    """A change that makes the errors of a kind independent of the step."""
    return lambda row: row | ({f"{kind}/log_error": LOGS[row["measure"]][2]} if "measure" in row else {})


GOOD = {"lra": arena, "hippo": memories}
BEST = {"learning_rate": 1e-2}
BAD = [
    (lra.TABLE, "A state-space model gets past", arena(setting(lra.ROOT, 0.61, model=lra.REFERENCE))),
    (
        lra.TABLE,
        "State-space models answer",
        arena(setting(lra.ACCURACY, 0.61, task="listops", model="Attention", **BEST)),
    ),
    (lra.TABLE, "State-space models trace", arena(setting(lra.ACCURACY, 0.52, task="pathfinder", **BEST))),
    (
        lra.TABLE,
        "State-space models trace",
        arena(setting(lra.ACCURACY, 0.95, task="pathfinder", model="Attention", **BEST)),
    ),
    (lra.TABLE, "A state-space model reads", arena(setting(lra.ACCURACY, 0.8, task="digits", **BEST))),
    (hippo.TABLE, "The step size matters", memories(at_one_step("delay"))),
    (hippo.TABLE, "It does for reconstruction", memories(at_one_step("reconstruction"))),
    (
        hippo.TABLE,
        "It does for trained",
        memories(lambda row: row | {hippo.ACCURACY: 0.9 + (row.get("basis") == "lin") / 20}),
    ),
    (hippo.TABLE, "A delay beyond", memories(setting("delay/error", 0.2, measure="legt", step=4.0))),
    (hippo.TABLE, "At a known lag", memories(setting("delay/log_error", -0.7, measure="fourier"))),
]


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_claims_hold_on_rows_that_agree_with_them(table):
    rows = from_csv(to_csv(GOOD[table.name]()))
    verdicts = [judge(claim, rows) for claim in table.claims]
    assert all(verdict.status == ("holds" if verdict.claim.asserted else "reported") for verdict in verdicts), verdicts


@pytest.mark.parametrize(("table", "text", "rows"), BAD, ids=[f"{t.name}-{text}" for t, text, _ in BAD])
def test_claims_fail_on_rows_that_contradict_them(table, text, rows):
    bad = broken([judge(claim, rows) for claim in table.claims], partial=True)
    assert [verdict for verdict in bad if verdict.claim.text.startswith(text)]
    assert all(any(c.isdigit() for c in verdict.evidence) for verdict in bad), "evidence holds numbers"


def test_every_asserted_claim_can_fail():
    reached = {(t.name, claim.text) for t, text, _ in BAD for claim in t.claims if claim.text.startswith(text)}
    assert reached == {(table.name, claim.text) for table in TABLES for claim in table.claims if claim.asserted}


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_missing_rows_are_not_measured(table):
    assert {judge(claim, Rows(())).status for claim in table.claims} == {"not measured"}


# Showing


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_markdown_and_figure_show_the_numbers(table):
    rows = GOOD[table.name]()
    text = table.markdown(rows)
    expected = {
        "lra": ["| S5 | 0.620 | 0.920 | 0.960 | 62.15 | 95.33 | 99.65 |", "| root operator | 0.440 | – | – | 37.00 |"],
        "hippo": ["| LegT | -0.320 | -0.740 | -3.740 | -0.060 |", "| lin | 0.610 | 0.910 | 0.710 |"],
    }
    assert all(number in text for number in expected[table.name]), text
    figure = Figure()
    table.draw(rows, figure)
    assert all(axes.get_xlabel() and axes.get_ylabel() and axes.lines for axes in figure.axes)
    assert all(math.isfinite(limit) for axes in figure.axes for limit in axes.get_ylim())
    table.draw(Rows(()), Figure())
