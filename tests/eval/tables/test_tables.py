"""The tables: their recipes fit what they say, and their claims fail on rows that contradict them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from configs.tables import hybrid as hybrid_recipe
from configs.tables import mom as mom_recipe
from configs.tables import recall as recall_recipe
from eval.tables import command, hybrid, mom, recall
from eval.tables.claims import broken, judge
from eval.tables.command import SCALES, distinct
from eval.tables.rows import Rows, from_csv, to_csv
from eval.tables.training import Training, costs
from seqmodels.config import check_types, from_json, to_json
from seqmodels.mixers import discover
from seqmodels.validate import check_schedule, check_vocabulary

TABLES = (hybrid.TABLE, mom.TABLE, recall.TABLE)
HARD, EASY = "recall/accuracy@64 pairs", "recall/accuracy@4 pairs"


def by_name(table):
    return table.name


# Cells


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_cells_are_experiments_that_fit_together(table, scale):
    cells = distinct(table.cells(scale))
    assert len(cells) > 8
    for cell in cells:
        experiment = cell.job.experiment
        assert experiment.name == cell.name and cell.labels["seed"] == experiment.train.seed
        check_types(experiment)
        check_vocabulary(experiment)
        check_schedule(experiment)
        assert experiment.train.steps % experiment.log.every == 0, "the last step is logged"
    assert from_json(to_json(cells[-1].job)) == cells[-1].job


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_tables_are_found_by_module(table):
    assert table.name in vars(__import__("eval.tables", fromlist=[table.name]))


ONE_CELL = {"hybrid": "mqar_hgrn_1-1_*", "mom": "inner-mixer_*", "recall": "hgrn_size0_*"}  # those that compile fast


@pytest.mark.parametrize("table", TABLES, ids=by_name)
@pytest.mark.slow
def test_one_cell_of_a_few_steps(table, tmp_path, capsys, monkeypatch):
    """One cell from the command line to CSV, Markdown and figure, and the same from the published results."""
    monkeypatch.setattr(command, "COMMITTED", tmp_path / "committed")
    words = ["--scale", "tiny", "--cells", ONE_CELL[table.name]]
    assert command.entry(table)([*words, "--out", str(tmp_path / "out"), "--publish"]) == 0
    assert "cell 1 of 1" in capsys.readouterr().out
    (row,) = from_csv((tmp_path / "out/results.csv").read_text())
    expected = {"recall/accuracy", "valid/loss", "valid/accuracy", "model/state_bytes", "model/flops_per_token"}
    assert expected <= set(row)
    assert (tmp_path / "out/figure.png").stat().st_size > 10_000
    assert command.entry(table)([*words, "--check"]) == 0
    text, closing = (tmp_path / "committed" / table.name / "tiny/table.md").read_text(), "asserted claims: holds 0"
    shown = capsys.readouterr().out
    assert shown.startswith(f"{text}\nof ") and closing in shown.removeprefix(text)


def test_mixtures_report_the_load_that_the_claim_reads():
    model = mom_recipe.experiment("tiny", mom_recipe.Memories(), 1e-3, 0, "x").model.make()
    tokens = jnp.zeros((2, 8), jnp.int32)
    _, _, aux = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), tokens, method="hidden")[0])
    assert mom.LOAD in aux and not aux[mom.LOAD].shape


# Sizes


@pytest.mark.parametrize("scale", ["laptop", "gpu", "paper"])
def test_wider_states_match_the_mixture(scale):
    def cost(variant):
        made = (
            mom_recipe.paper("380M", variant, "x")
            if scale == "paper"
            else mom_recipe.experiment(scale, variant, 1e-3, 0, "x")
        )
        first, *rest = made.model.pattern
        if not rest:
            return costs(made.model, made.data.seq_len)
        alone = dataclasses.replace(made.model, depth=1, pattern=(first,))  # what all variants share says nothing
        whole, shared = (costs(model, made.data.seq_len) for model in (made.model, alone))
        return {name: cost - shared[name] for name, cost in whole.items()}

    mixture, plain = cost(mom_recipe.Memories()), cost(mom_recipe.Inner())
    for match, metric in mom_recipe.MATCHED.items():
        assert cost(mom_recipe.Inner(match))[metric] == pytest.approx(mixture[metric], rel=0.03), match
        assert plain[metric] < 0.9 * mixture[metric]
    assert mixture["model/activated_parameters"] < 0.9 * mixture["model/parameters"]
    assert plain["model/activated_parameters"] == plain["model/parameters"]


def test_hybrids_have_the_ratio_that_they_say():
    for scale, size in hybrid_recipe.SIZES.items():
        for ratio, full in size.ratios.items():
            layers = hybrid_recipe.experiment(scale, "mqar", "GLA", ratio, 1e-3, 0, "x").model.layers
            assert sum(layer.label == "Attention" for layer in layers) == full
            if full:
                assert ratio == f"{(len(layers) - full) // full}:1" and layers[-1].label == "Attention"
    model = hybrid_recipe.paper("1.3B", "GatedDeltaNet", "3:1", "x").model
    assert [layer.label for layer in model.pattern] == ["GatedDeltaNet"] * 3 + ["Attention"] and model.depth == 20


def test_matrix_states_of_the_hybrid_study_are_equal():
    size = hybrid_recipe.SIZES["laptop"]
    mixers = hybrid_recipe.small_mixers(size)
    memory = {name: mixers[name].make(size.dim).state_bytes() for name in ("RetNet", "GLA", "HGRN2")}
    assert len(set(memory.values())) == 1, memory


def test_the_recall_curve_has_every_mixer_of_the_package():
    found = recall_recipe.mixers("laptop")
    assert {f"{name}Config" for name in found} == set(discover())
    sizes = {name: len(configs) for name, configs in found.items()}
    assert all(sizes[name] == 3 for name in ("Attention", "GatedDeltaNet", "HGRN", "Mamba", "RGLRU", "RetNet")), sizes
    for name, configs in found.items():
        state = [config.make(64).state_bytes(256) for config in configs]
        assert state == sorted(state) and len(set(state)) == len(state), f"{name}: {state}"


# Claims


def study(change=lambda row: row):
    """Rows of the hybrid study that agree with every claim, each passed through `change`."""
    pure = {"RetNet": 0.4, "GLA": 0.5, "HGRN": 0.3, "HGRN2": 0.5, "DeltaNet": 0.7, "GatedDeltaNet": 0.75}
    rows = []
    for mixer, ratio in hybrid.models(hybrid_recipe.SIZES["laptop"].ratios):
        hard = {"pure": pure.get(mixer, 1.0), "1:1": 0.9, "full": 1.0}[ratio]
        for rate in (1e-3, 1e-2):
            labels = {"mixer": mixer, "ratio": ratio, "learning_rate": rate, "seed": 0}
            scores = {EASY: 0.99, HARD: hard, "recall/accuracy": hard, "valid/accuracy": hard}
            if rate == 1e-2:
                scores = dict.fromkeys(scores, 0.0)
            rows.append({"task": "mqar", **labels, **scores})
        labels = {"mixer": mixer, "ratio": ratio, "learning_rate": 1e-3, "seed": 0}
        rows.append({"task": "passkey", **labels, "passkey/exact": hard, "valid/accuracy": hard})
        rows.append({"task": "stdlib", **labels, "perplexity/bits_per_byte": 2.0 + 0.02 * hard, "valid/loss": 1.4})
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


def mixtures(change=lambda row: row):
    """Rows of the study of memories that agree with every claim."""
    rows = []
    for variant in mom_recipe.VARIANTS:
        match variant:
            case mom_recipe.Memories(memories, shared, weight):
                hard = 0.6 + 0.05 * memories - 0.2 * (not shared)
                load = {"stat/load_max": 1.1 if weight == 1e-2 else 1.9}
            case _:
                hard, load = 0.5, {}
        for seed in range(3):
            labels = {"variant": mom.label(variant), "size": "laptop", "learning_rate": 1e-3, "seed": seed}
            scores = {EASY: 1.0, HARD: hard + 0.005 * seed, "recall/accuracy": hard, "valid/accuracy": hard}
            rows.append(labels | scores | load)
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


def curves(change=lambda row: row):
    """Rows of the recall curve that agree with every claim."""
    rows = []
    for mixer, low in (("Attention", 0.9), ("GLA", 0.3), ("HGRN", 0.1)):
        for size in range(3):
            labels = {"mixer": mixer, "size": size, "learning_rate": 1e-3, "seed": 0}
            score = min(1.0, low + 0.1 * size)
            numbers = {"model/state_bytes": 1e4 * low * 2**size, "recall/accuracy": score, "valid/accuracy": score}
            rows.append(labels | numbers | {EASY: 1.0, HARD: score})
    return Rows(tuple(changed for row in rows if (changed := change(row)) is not None))


def setting(metric, value, **labels):
    """A change that sets `metric` in the rows with these labels."""

    def change(row):
        hit = metric in row and all(row.get(name) == label for name, label in labels.items())
        return row | {metric: value} if hit else row

    return change


def without(**labels):
    """A change that drops the rows with these labels."""
    return lambda row: None if all(row.get(name) == label for name, label in labels.items()) else row


def status(table, rows):
    """What becomes of every claim, by the beginning of its text."""
    return {claim.text: judge(claim, rows).status for claim in table.claims}


GOOD = {"hybrid": study, "mom": mixtures, "recall": curves}


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_claims_hold_on_rows_that_agree_with_them(table):
    rows = GOOD[table.name]()
    verdicts = [judge(claim, rows) for claim in table.claims]
    assert all(verdict.status == ("holds" if verdict.claim.asserted else "reported") for verdict in verdicts), verdicts
    assert not broken(verdicts, partial=False)
    assert {verdict.status for verdict in (judge(claim, from_csv(to_csv(rows))) for claim in table.claims)} <= {
        "holds",
        "reported",
    }


WIDE, EIGHT = mom.label(mom_recipe.Inner("state bytes")), mom.label(mom_recipe.Memories(memories=8))
BARE, FREE = mom.label(mom_recipe.Memories(shared=False)), mom.label(mom_recipe.Memories(balance_weight=0.0))
MAIN = mom.label(mom_recipe.Memories())
PURE_RETNET = {"task": "mqar", "mixer": "RetNet", "ratio": "pure", "learning_rate": 1e-3}
BAD = [
    (hybrid.TABLE, "Pure linear recall falls", study(setting(HARD, 0.99, ratio="pure", learning_rate=1e-3))),
    (hybrid.TABLE, "Delta rules hold longer", study(setting(HARD, 0.72, **PURE_RETNET))),
    (hybrid.TABLE, "One full-attention layer", study(setting(HARD, 0.5, ratio="1:1"))),
    (hybrid.TABLE, "One full-attention layer", study(setting(HARD, 0.6, ratio="full"))),
    (hybrid.TABLE, "Language-model loss", study(setting("perplexity/bits_per_byte", 2.3, mixer="GLA", ratio="1:1"))),
    (mom.TABLE, "Routed memories", mixtures(setting(HARD, 0.9, variant=WIDE))),
    (mom.TABLE, "Routed memories", mixtures(setting(HARD, 0.97, variant=WIDE))),
    (mom.TABLE, "Removing the shared", mixtures(setting(HARD, 0.81, variant=BARE))),
    (mom.TABLE, "Without the auxiliary", mixtures(setting("stat/load_max", 1.2, variant=FREE))),
    (recall.TABLE, "Recall is bought", curves(setting("recall/accuracy", 0.9, mixer="HGRN"))),
    (recall.TABLE, "Full attention", curves(setting("recall/accuracy", 0.9, mixer="Attention"))),
]


@pytest.mark.parametrize(("table", "text", "rows"), BAD, ids=[f"{t.name}-{text}" for t, text, _ in BAD])
def test_claims_fail_on_rows_that_contradict_them(table, text, rows):
    bad = broken([judge(claim, rows) for claim in table.claims], partial=True)
    assert [verdict.claim.text for verdict in bad if verdict.claim.text.startswith(text)], status(table, rows)
    assert all(any(c.isdigit() for c in verdict.evidence) for verdict in bad), "evidence holds numbers"


def test_every_asserted_claim_can_fail():
    reached = {
        (table.name, claim.text) for table, text, _ in BAD for claim in table.claims if claim.text.startswith(text)
    }
    assert reached == {(table.name, claim.text) for table in TABLES for claim in table.claims if claim.asserted}


def test_reports_say_no_and_do_not_fail():
    rows = mixtures(setting(HARD, 0.1, variant=EIGHT))
    verdict = judge(mom.CLAIMS[-1], rows)
    assert verdict.status == "reported" and verdict.evidence.startswith("No: at 64 pairs: 1 memories 0.655")
    best = judge(hybrid.CLAIMS[-1], study(setting(HARD, 0.97, mixer="GLA", ratio="1:1", learning_rate=1e-3)))
    assert best.evidence == "No: best recall: GatedDeltaNet among pure models, GLA at 1:1"


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_missing_rows_are_not_measured(table):
    assert set(status(table, Rows(())).values()) == {"not measured"}
    dropped = {
        "hybrid": study(without(mixer="GLA")),
        "mom": mixtures(without(variant=MAIN)),
        "recall": curves(without(mixer="GLA")),
    }
    found = status(table, dropped[table.name])
    assert ("not measured" in found.values()) == (table is not recall.TABLE), (
        "a missing mixer leaves the curve testable"
    )


# Showing


@pytest.mark.parametrize("table", TABLES, ids=by_name)
def test_markdown_and_figure_show_every_number(table):
    from matplotlib.figure import Figure

    rows = GOOD[table.name]()
    text = table.markdown(rows)
    numbers = {
        "hybrid": [
            "| RetNet | pure | 0.400 | 0.400 | 0.400 | 2.008 | – | 0.471 |",
            "| HGRN2 | 6:1 |",
            "0.434 | 0.494 |",
        ],
        "mom": ["| inner mixer | 0.500 ± 0.000 | 0.505 ± 0.005 | – |", "| 24.78 | 41.44 |", "28.16 (444M)"],
        "recall": ["| GLA | 12,000 | 0.500 | 1.000 | 0.500 |"],
    }
    assert all(number in text for number in numbers[table.name]), text
    figure = Figure()
    table.draw(rows, figure)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert sum(len(axes.containers) for axes in figure.axes) >= 3
    table.draw(Rows(()), Figure())


def test_activated_parameters_of_a_model_without_memories():
    experiment = hybrid_recipe.experiment("tiny", "mqar", "GLA", "1:1", 1e-3, 0, "x")
    found = costs(experiment.model, 32)
    assert found["model/parameters"] == found["model/activated_parameters"]
    job = Training(dataclasses.replace(experiment, name="y"))
    assert json.loads(to_json(job))["class"] == "eval.tables.training:Training"
