"""Numbers keep their meaning: the best rate on held-out data, means over seeds, CSV and back."""

import math

import pytest

from eval.tables.rows import NotMeasured, Rows, Stat, exceeds, from_csv, from_result, grid, to_csv


def row(rate, seed, held_out, test, mixer="A"):
    labels = {"mixer": mixer, "ratio": "3:1", "learning_rate": rate, "seed": seed}
    return {**labels, "valid/accuracy": held_out, "valid/loss": held_out, "recall/accuracy": test}


SWEEP = Rows((row(1e-3, 0, 0.5, 0.9), row(1e-3, 1, 0.7, 0.8), row(1e-2, 0, 0.9, 0.1), row(1e-2, 1, 0.2, 0.1)))


def test_the_rate_is_chosen_by_the_mean_on_held_out_data():
    found = SWEEP.stat("recall/accuracy", mixer="A")
    assert found.mean == pytest.approx(0.85) and found.count == 2
    assert found.deviation == pytest.approx(0.1 / math.sqrt(2)) and found.error == pytest.approx(0.05)
    lowest = SWEEP.where(select="valid/loss").stat("recall/accuracy", mixer="A")
    assert lowest.mean == pytest.approx(0.1), "a loss is to be low"


def test_diverged_rates_do_not_count():
    diverged = {"mixer": "A", "ratio": "3:1", "learning_rate": 1.0, "seed": 0, "sweep/diverged": 1.0}
    assert Rows((*SWEEP.items, diverged)).stat("recall/accuracy", mixer="A").count == 2
    with pytest.raises(NotMeasured, match="mixer=A"):
        Rows((diverged,)).stat("recall/accuracy", mixer="A")


def test_what_is_missing_and_what_is_ambiguous():
    assert SWEEP.find("recall/accuracy", mixer="B") is None
    with pytest.raises(NotMeasured, match="passkey/exact of mixer=A"):
        SWEEP.stat("passkey/exact", mixer="A")
    both = Rows((*SWEEP.items, row(1e-3, 0, 0.5, 0.9, mixer="B")))
    with pytest.raises(ValueError, match="name 2 entries"):
        both.stat("recall/accuracy", ratio="3:1")


def test_a_lead_must_exceed_margin_and_noise():
    assert exceeds(Stat(0.9, 0.0, 1), Stat(0.8, 0.0, 1), 0.05)
    assert not exceeds(Stat(0.84, 0.0, 1), Stat(0.8, 0.0, 1), 0.05)
    assert not exceeds(Stat(0.9, 0.2, 3), Stat(0.8, 0.2, 3), 0.05)
    assert exceeds(Stat(0.9, 0.02, 3), Stat(0.8, 0.02, 3), 0.05)


def test_slices_are_in_the_order_of_their_numbers():
    rows = Rows(({"recall/accuracy@64 pairs": 0.1, "recall/accuracy@8 pairs": 0.2, "recall/exact@9 pairs": 0.3},))
    assert list(rows.slices("recall/accuracy@")) == [8, 64]


def test_csv_and_back():
    machine = {
        "commit": "1e5",
        "uncommitted_changes": True,
        "device": "A, B",
        "devices": 1,
        "versions": {"jax": "0.10"},
    }
    result = {
        "cell": "a",
        "labels": {"mixer": "A", "ratio": "3:1", "learning_rate": 1e-3, "seed": 0},
        "metrics": {"valid/accuracy": 1 / 3, "valid/loss": None},
        "digest": "12e3",
        "date": "2026-01-01",
        "seconds": 3.5,
        "resumed": False,
        "machine": machine,
    }
    rows = Rows((from_result(result), {**SWEEP.items[0], "cell": "b", "seconds": 1.0}))
    text = to_csv(rows)
    assert text.startswith("mixer,ratio,learning_rate,seed,recall/accuracy,valid/accuracy,valid/loss,seconds,")
    back = from_csv(text)
    assert [dict(r) for r in back] == [dict(r) for r in rows]
    assert dict(back.items[0])["commit"] == "1e5+" and "valid/loss" not in back.items[0]


def test_markdown():
    assert grid(["a", "b"], [[None, 0.5], ["x|y", Stat(0.5, 0.1, 3)]]) == (
        "| a | b |\n| --- | --- |\n| – | 0.500 |\n| x\\|y | 0.500 ± 0.100 |"
    )
