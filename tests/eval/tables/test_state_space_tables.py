"""Tables of selectivity, MemMamba, SeqBoat and LMUFormer: recipes fit what they say, claims can fail."""

import math

import pytest
from matplotlib.figure import Figure

from configs.tables import lmuformer as lmuformer_recipe
from configs.tables import memmamba as memmamba_recipe
from configs.tables import selective as selective_recipe
from configs.tables import seqboat as seqboat_recipe
from eval.tables import command, lmuformer, memmamba, selective, seqboat
from eval.tables.claims import broken, judge
from eval.tables.command import SCALES, distinct
from eval.tables.rows import Rows, from_csv, to_csv
from eval.tables.training import costs
from seqmodels.config import check_types, from_json, to_json
from seqmodels.mixers import (
    AttentionConfig,
    ConvEmbeddingConfig,
    HyenaConfig,
    LMUConfig,
    SeqBoatConfig,
    SpikingMLPConfig,
)
from seqmodels.validate import check_schedule, check_vocabulary
from tests.eval.tables.test_tables import by_name, setting, status, without

TABLES = (selective.TABLE, memmamba.TABLE, seqboat.TABLE, lmuformer.TABLE)


# Cells


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_cells_are_experiments_that_fit_together(table, scale):
    cells = distinct(table.cells(scale))
    assert len(cells) >= 4
    for cell in cells:
        experiment = cell.job.experiment
        assert experiment.name == cell.name and cell.labels["seed"] == experiment.train.seed
        check_types(experiment)
        check_vocabulary(experiment)
        check_schedule(experiment)
        assert experiment.train.steps % experiment.log.every == 0, "the last step is logged"
    assert from_json(to_json(cells[-1].job)) == cells[-1].job


ONE_CELL = {
    "selective": "induction_s4d_*",
    "memmamba": "memmamba_*",
    "seqboat": "copying_seqboat_*",
    "lmuformer": "lmuformer_*",
}
METRICS = {
    "selective": {"lengths/accuracy@32"},
    "memmamba": {"fidelity/token@16", "passkey/exact@length 704 depth 0"},
    "seqboat": {"lengths/accuracy@32", "stat/activation"},
    "lmuformer": {"classification/accuracy"},
}


@pytest.mark.parametrize("table", TABLES, ids=by_name)
@pytest.mark.slow
def test_one_cell_of_a_few_steps(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "COMMITTED", tmp_path / "committed")
    words = ["--scale", "tiny", "--cells", ONE_CELL[table.name]]
    assert command.entry(table)([*words, "--out", str(tmp_path / "out"), "--publish"]) == 0
    assert "cell 1 of 1" in capsys.readouterr().out
    (row,) = from_csv((tmp_path / "out/results.csv").read_text())
    assert METRICS[table.name] | {"valid/accuracy", "model/parameters"} <= set(row)
    assert (tmp_path / "committed" / table.name / "tiny/figure.png").stat().st_size > 10_000


# Sizes


def test_a_filter_is_as_long_as_the_trained_rows():
    for task in (selective.COPYING, selective.INDUCTION):
        experiment = selective_recipe.experiment("laptop", task, "Hyena", 1e-2, 0, "x")
        (block,) = experiment.model.pattern
        assert isinstance(block.mixer, HyenaConfig) and block.mixer.max_length == experiment.data.seq_len


@pytest.mark.parametrize("scale", SCALES)
def test_controls_of_the_notes_match(scale):
    def cost(variant):
        made = memmamba_recipe.experiment(scale, variant, 1e-3, 0, "x")
        return costs(made.model, made.data.seq_len)

    notes, plain, window = (cost(name) for name in (memmamba.NOTES, memmamba.MAMBA, memmamba.WINDOW))
    cache = [found["model/state_bytes"] - plain["model/state_bytes"] for found in (notes, window)]
    assert cache[1] == pytest.approx(cache[0], rel=0.05) and cache[0] > 0
    wide = cost(memmamba.WIDE)["model/parameters"]
    assert notes["model/parameters"] <= wide <= 1.06 * notes["model/parameters"]
    assert plain["model/parameters"] < 0.95 * wide


def test_the_moving_average_alone_has_one_place():
    size = seqboat_recipe.SIZES["laptop"]
    config = seqboat_recipe.mixer(seqboat.AVERAGE, size)
    assert isinstance(config, SeqBoatConfig) and math.ceil((config.capacity or 1) * size.seq_len) == 1
    window = seqboat_recipe.mixer(seqboat.WINDOW, size)
    assert isinstance(window, AttentionConfig) and window.window == size.memory_size + 1


def test_variants_of_lmuformer_differ_by_what_they_are_named_for():
    size = lmuformer_recipe.SIZES["laptop"]
    made = {variant: lmuformer_recipe.model(variant, size, 64) for variant in lmuformer.VARIANTS}
    kinds = [[(type(block.mixer), block.mlp is not None) for block in m.layers] for m in made.values()]
    embedding, bare, whole = (ConvEmbeddingConfig, False), (LMUConfig, False), (LMUConfig, True)
    channels = (SpikingMLPConfig, False)
    assert kinds == [[bare], [embedding, bare], [embedding, whole], [embedding, bare, channels]]
    first, memory, _ = (block.mixer for block in made[lmuformer.SPIKING].layers)
    assert isinstance(first, ConvEmbeddingConfig) and first.spiking
    assert isinstance(memory, LMUConfig) and memory.spiking and memory.memory_size == 2 * size.memory_size


# Claims


def selectivity(change=lambda row: row):
    """Rows of the study of selectivity that agree with every claim, each passed through `change`."""
    rows = []
    near = {"Mamba": 0.99, "S4": 0.2, "S4D": 0.25, "H3": 0.6, "Hyena": 0.3}
    far = {"Mamba": 0.98, "S4": 0.1, "S4D": 0.1, "H3": 0.2, "Hyena": 0.1}
    hard = {"Mamba, N=16": 0.4, "Mamba-2, N=16": 0.5, "Mamba-2, N=64": 0.8, "Mamba-2, N=256": 0.95}
    cost = {"model/parameters": 1e5, "model/state_bytes": 2048.0}
    less = {selective.NOTHING: 0.25, selective.MAPS: 0.5, selective.STEP: 0.7}
    for mixer, score in (near | less).items():
        labels = {"mixer": mixer, "learning_rate": 1e-2, "seed": 0, "valid/accuracy": score} | cost
        rows.append({"task": "copying", "lengths/accuracy@64": score} | labels)
        if mixer in far:
            scores = {"lengths/accuracy@64": score, "lengths/accuracy@512": far[mixer]}
            rows.append({"task": "induction"} | scores | labels)
    for mixer, score in hard.items():
        labels = {"mixer": mixer, "learning_rate": 1e-2, "seed": 0, "valid/accuracy": score} | cost
        rows.append({"task": "mqar", HARD: score, EASY: 0.99} | labels)
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


def notes(change=lambda row: row):
    """Rows of the study of MemMamba that agree with every claim."""
    far = {memmamba.NOTES: 0.9, memmamba.WINDOW: 0.5, memmamba.ALL_NOTED: 0.6}
    rows = []
    for variant in memmamba.VARIANTS:
        score = far.get(variant, 0.3)
        scores = {NEAR: 0.99, FAR: score, "fidelity/token@64": score / 2, "fidelity/layer@1": score}
        labels = {"variant": variant, "learning_rate": 1e-2, "seed": 0, "valid/accuracy": 0.99}
        rows.append(labels | scores | {"model/parameters": 1e5, "model/state_bytes": 4096.0})
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


def boats(change=lambda row: row):
    """Rows of the study of SeqBoat that agree with every claim."""
    rows = []
    scores = {seqboat.SEQBOAT: 0.9, seqboat.AVERAGE: 0.3, seqboat.WINDOW: 0.5}
    for mixer, score in scores.items():
        labels = {"mixer": mixer, "learning_rate": 1e-2, "seed": 0, "valid/accuracy": score}
        labels |= {"model/parameters": 1e5, "model/state_bytes": 4096.0}
        share = {"stat/activation": 0.2, seqboat.SPREAD: 0.64} if mixer != seqboat.WINDOW else {}
        rows.append({"task": "mqar", HARD: score, EASY: 0.95} | labels | share)
        copied = {"lengths/accuracy@128": score} | labels | dict.fromkeys(share, 0.4)
        rows.append({"task": "copying"} | copied)
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


def spikes(change=lambda row: row):
    """Rows of the study of LMUFormer that agree with every claim."""
    rows = []
    for variant, score in zip(lmuformer.VARIANTS, (0.8, 0.9, 0.96, 0.95), strict=True):
        for seed in range(3):
            labels = {"variant": variant, "learning_rate": 5e-3, "seed": seed, "model/parameters": 1e5}
            rows.append(labels | {"classification/accuracy": score + 0.01 * (seed - 1), "valid/accuracy": score})
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


HARD, EASY = "recall/accuracy@32 pairs", "recall/accuracy@4 pairs"
NEAR, FAR = "passkey/exact@length 128 depth 0", "passkey/exact@length 1024 depth 0"
GOOD = {"selective": selectivity, "memmamba": notes, "seqboat": boats, "lmuformer": spikes}
BAD = [
    (selective.TABLE, "Selective step size", selectivity(setting("lengths/accuracy@64", 0.9, mixer="S4D"))),
    (selective.TABLE, "Selective step size", selectivity(setting("lengths/accuracy@64", 0.9, mixer="Mamba"))),
    (selective.TABLE, "Selective step size", selectivity(setting("lengths/accuracy@64", 0.9, mixer=selective.NOTHING))),
    (selective.TABLE, "Mamba solves induction", selectivity(setting("lengths/accuracy@64", 0.9, mixer="Mamba"))),
    (selective.TABLE, "Mamba's induction", selectivity(setting("lengths/accuracy@512", 0.9, mixer="Mamba"))),
    (selective.TABLE, "Mamba's induction", selectivity(setting("lengths/accuracy@512", 0.9, mixer="Hyena"))),
    (selective.TABLE, "N of 64 and 256", selectivity(setting(HARD, 0.52, mixer="Mamba-2, N=64"))),
    (selective.TABLE, "N of 64 and 256", selectivity(setting(HARD, 0.99, mixer="Mamba-2, N=16"))),
    (memmamba.TABLE, "Mamba finds fewer", notes(setting(FAR, 0.95, variant=memmamba.MAMBA))),
    (memmamba.TABLE, "Mamba finds fewer", notes(setting(NEAR, 0.5, variant=memmamba.MAMBA))),
    (memmamba.TABLE, "A pool of notes", notes(setting(FAR, 0.85, variant=memmamba.WIDE))),
    (seqboat.TABLE, "Attention on active", boats(setting("lengths/accuracy@128", 0.97, mixer=seqboat.AVERAGE))),
    (seqboat.TABLE, "It is no worse", boats(setting(HARD, 0.97, mixer=seqboat.WINDOW))),
    (seqboat.TABLE, "The share", boats(setting(seqboat.SPREAD, 0.001, task="mqar"))),
    (lmuformer.TABLE, "LMUFormer is better", spikes(setting("classification/accuracy", 0.95, variant=lmuformer.LMU))),
    (lmuformer.TABLE, "Spikes cost", spikes(setting("classification/accuracy", 0.9, variant=lmuformer.SPIKING))),
]


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_claims_hold_on_rows_that_agree_with_them(table):
    for rows in (GOOD[table.name](), from_csv(to_csv(GOOD[table.name]()))):
        verdicts = [judge(claim, rows) for claim in table.claims]
        assert all(verdict.status == ("holds" if verdict.claim.asserted else "reported") for verdict in verdicts)
        assert all(verdict.status == "holds" or verdict.evidence.startswith("Yes: ") for verdict in verdicts), verdicts


@pytest.mark.parametrize(("table", "text", "rows"), BAD, ids=[f"{t.name}-{text}" for t, text, _ in BAD])
def test_claims_fail_on_rows_that_contradict_them(table, text, rows):
    bad = broken([judge(claim, rows) for claim in table.claims], partial=True)
    assert [verdict.claim.text for verdict in bad if verdict.claim.text.startswith(text)], status(table, rows)
    assert all(any(c.isdigit() for c in verdict.evidence) for verdict in bad), "evidence holds numbers"


def test_every_asserted_claim_can_fail():
    reached = {claim.text for table, text, _ in BAD for claim in table.claims if claim.text.startswith(text)}
    assert reached == {claim.text for table in TABLES for claim in table.claims if claim.asserted}


def test_reports_say_no_and_do_not_fail():
    beaten = notes(setting(FAR, 0.95, variant=memmamba.WINDOW))
    verdict = next(judge(claim, beaten) for claim in memmamba.CLAIMS if claim.text.startswith("Notes beat"))
    assert verdict.status == "reported" and verdict.evidence.startswith("No: at 1024 bytes: MemMamba 0.900")
    unordered = selectivity(setting(HARD, 0.7, mixer="Mamba-2, N=256"))
    verdict = next(judge(claim, unordered) for claim in selective.CLAIMS if claim.text.startswith("The largest state"))
    assert verdict.evidence == "No: at 32 pairs: Mamba-2, N=16 0.500, Mamba-2, N=64 0.800, Mamba-2, N=256 0.700"


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_missing_rows_are_not_measured(table):
    assert set(status(table, Rows(())).values()) == {"not measured"}
    dropped = {
        "selective": selectivity(without(mixer="S4")),
        "memmamba": notes(without(variant=memmamba.MAMBA)),
        "seqboat": boats(without(mixer=seqboat.AVERAGE)),
        "lmuformer": spikes(without(variant=lmuformer.LMU)),
    }
    assert "not measured" in status(table, dropped[table.name]).values()


# Showing


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_markdown_and_figure_show_every_number(table):
    numbers = {
        "selective": ["| H3 | 0.600 | 0.600 | 0.200 | 100,000 | 2,048 | 57.0 |", "| Mamba-2, N=64 | 0.990 | 0.800 |"],
        "memmamba": ["| MemMamba | 0.990 | 0.900 | 0.450 | 0.900 | 100,000 | 4,096 |", "INFERRED", "Mamba 0%"],
        "seqboat": ["| SeqBoat | 0.950 | 0.900 | 0.900 | 0.200 | 0.400 | 100,000 | 4,096 |", "not tested here"],
        "lmuformer": ["| spiking LMUFormer | 0.950 ± 0.010 | 100,000 | 97.92 | 96.12 |", "second hand"],
    }
    text = table.markdown(GOOD[table.name]())
    assert all(number in text for number in numbers[table.name]), text
    figure = Figure()
    table.draw(GOOD[table.name](), figure)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert sum(len(axes.containers) for axes in figure.axes) >= 4
    table.draw(Rows(()), Figure())
