"""Generated tasks: a reference solver answers every question from the inputs alone."""

from __future__ import annotations

import numpy as np
import pytest

from seqmodels.data.base import Row
from seqmodels.data.copying import Copying, SelectiveCopying
from seqmodels.data.induction import InductionHeads
from seqmodels.data.mqar import MQAR
from seqmodels.data.passkey import Passkey
from seqmodels.data.synthetic import SyntheticTask
from seqmodels.errors import UserError


def examples(task: SyntheticTask, count: int = 200) -> list[Row]:
    rows = task.rows("train", 0)
    return [rows[i] for i in range(count)]


def solve_mqar(row: Row, vocab_size: int, pairs: int) -> np.ndarray:
    """Read the pairs, then answer wherever one of their keys stands again at a query's place."""
    memory = dict(zip(row["tokens"][0 : 2 * pairs : 2], row["tokens"][1 : 2 * pairs : 2]))
    assert len(memory) == pairs and all(0 < key < vocab_size // 2 <= value for key, value in memory.items())
    asked = np.flatnonzero(row["loss_mask"])
    assert sorted(row["tokens"][asked]) == sorted(memory) and np.all(asked >= 2 * pairs) and not np.any(asked % 2)
    return np.array([memory[key] for key in row["tokens"][asked]])


@pytest.mark.parametrize("fill", [True, False])
def test_mqar_can_be_solved(fill: bool) -> None:
    task = MQAR(seq_len=64, vocab_size=100, num_pairs=(2, 8, 16), random_non_queries=fill)
    drawn = []
    for row in examples(task):
        pairs = task.num_pairs[row["slices"]]
        drawn.append(pairs)
        np.testing.assert_array_equal(solve_mqar(row, 100, pairs), row["targets"][row["loss_mask"] > 0])
        rest = np.delete(row["tokens"][2 * pairs :], np.flatnonzero(row["loss_mask"]) - 2 * pairs)
        assert fill == bool(rest.any())
    assert min(drawn.count(pairs) for pairs in task.num_pairs) > 40
    assert task.slice_names == ("2 pairs", "8 pairs", "16 pairs")


def test_mqar_filler_of_many_kinds_is_neither_key_nor_value() -> None:
    """With 13 kinds of filler, tokens 13 to 21 are keys and 22 to 31 values."""
    task = MQAR(seq_len=32, vocab_size=32, num_pairs=(2, 8), power_a=1.0, random_non_queries=False, filler_tokens=13)
    seen: dict[str, list[int]] = {"keys": [], "values": [], "filler": []}
    for row in examples(task):
        pairs = task.num_pairs[row["slices"]]
        asked = np.flatnonzero(row["loss_mask"])
        memory = dict(zip(row["tokens"][0 : 2 * pairs : 2], row["tokens"][1 : 2 * pairs : 2]))
        np.testing.assert_array_equal(row["targets"][asked], [memory[key] for key in row["tokens"][asked]])
        seen["keys"] += memory.keys()
        seen["values"] += memory.values()
        seen["filler"] += np.delete(row["tokens"], [*range(2 * pairs), *asked]).tolist()
    kinds = {name: set(map(int, tokens)) for name, tokens in seen.items()}
    assert kinds == {"keys": set(range(13, 22)), "values": set(range(22, 32)), "filler": set(range(13))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filler_tokens": 0}, "filler_tokens: 0; use 1 or more"),
        ({"filler_tokens": 20}, r"vocab_size: 32 has 5 keys for 8 pairs; use at least 37"),
        ({"filler_tokens": 40}, r"vocab_size: 32 has 0 keys for 8 pairs; use at least 57"),
    ],
)
def test_mqar_refuses_filler_that_leaves_too_few_keys(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MQAR(seq_len=32, vocab_size=32, num_pairs=(2, 8), **change)


def test_mqar_queries_follow_the_power_law() -> None:
    """With one pair the slot of its query is a plain draw from ``p(slot) ~ (slot + 1) ** (a - 1)``."""
    for power in (0.01, 1.0):
        task = MQAR(seq_len=18, vocab_size=32, num_pairs=(1,), power_a=power)
        slots = np.array([(np.flatnonzero(row["loss_mask"])[0] - 2) // 2 for row in examples(task, 4000)])
        law = np.arange(1, 9) ** (power - 1)
        law /= law.sum()
        error = np.abs(np.bincount(slots, minlength=8) / 4000 - law)
        assert np.all(error < 5 * np.sqrt(law / 4000))


def test_mqar_keys_and_values_are_uniform() -> None:
    task = MQAR(seq_len=16, vocab_size=16, num_pairs=(4,))
    pairs = np.stack([row["tokens"][:8].reshape(4, 2) for row in examples(task, 2000)])
    keys, values = (np.bincount(pairs[..., i].ravel(), minlength=16) / 8000 for i in (0, 1))
    np.testing.assert_allclose(keys[1:8], 1 / 7, atol=0.02)
    np.testing.assert_allclose(values[8:], 1 / 8, atol=0.02)
    assert keys[0] == 0 and not keys[8:].any() and not values[:8].any()


@pytest.mark.parametrize("kind", [Copying, SelectiveCopying])
def test_copying_can_be_solved(kind: type[Copying]) -> None:
    task = kind(seq_len=40, vocab_size=8, num_tokens=(3, 6))
    places = set()
    for row in examples(task):
        count = task.num_tokens[row["slices"]]
        body = row["tokens"][: 40 - count]
        np.testing.assert_array_equal(row["tokens"][-count:], 7)
        np.testing.assert_array_equal(body[body != 0], row["targets"][row["loss_mask"] > 0])
        assert set(body) <= set(range(7)) and row["loss_mask"].sum() == row["loss_mask"][-count:].sum() == count
        places.add(tuple(np.flatnonzero(body)))
    assert len(places) == 2 if kind is Copying else len(places) > 150


def test_induction_can_be_solved() -> None:
    task = InductionHeads(seq_len=32, vocab_size=6)
    quarters = []
    for row in examples(task, 400):
        places = np.flatnonzero(row["tokens"] == 5)
        assert len(places) == 2 and places[1] == 31 and row["loss_mask"].sum() == row["loss_mask"][-1] == 1
        assert row["targets"][-1] == row["tokens"][places[0] + 1]
        quarters.append(int(row["slices"]))
        assert quarters[-1] == places[0] * 4 // 30
    assert min(np.bincount(quarters, minlength=4)) > 60
    shortest = examples(InductionHeads(seq_len=3, vocab_size=3), 20)
    assert all(row["tokens"][0] == 2 and row["targets"][-1] == row["tokens"][1] for row in shortest)


@pytest.mark.parametrize("filler", ["sentences", "stdlib"])
def test_passkeys_can_be_found(filler) -> None:
    task = Passkey(seq_len=300, lengths=(200, 300), depths=(0.0, 0.5, 1.0), digits=4, filler=filler)
    seen = set()
    for row in examples(task, 60):
        name = task.slice_names[row["slices"]]
        seen.add(name)
        length, depth = int(name.split()[1]), float(name.split()[3])
        assert row["segment_ids"].tolist() == [1] * length + [0] * (300 - length) and row["tokens"][0] == 256
        text = task.tokenizer.decode(row["tokens"][:length])
        needle = text.index("\nThe pass key is ")
        key = text[needle + 17 : needle + 21]
        assert task.tokenizer.decode(row["targets"][row["loss_mask"] > 0]) == key
        assert text.endswith("The pass key is " + key[:3])
        filler_bytes = length - len(
            f"\nThe pass key is {key}. Remember it.\n\nWhat is the pass key? The pass key is {key}"
        )
        assert abs(needle - depth * filler_bytes) <= 1
    assert seen == set(task.slice_names) and len(seen) == 6


def test_an_example_depends_on_seed_split_and_index_only() -> None:
    task = MQAR(seq_len=16, vocab_size=32)
    rows = task.rows("train", 5)
    np.testing.assert_array_equal(rows[2**40]["tokens"], task.rows("train", 5)[2**40]["tokens"])
    draws = [
        task.rows(split, seed)[i]["tokens"].tobytes() for split in ("train", "valid") for seed in (5, 6) for i in (0, 1)
    ]
    assert len(set(draws)) == 8
    assert len(task.rows("valid", 5)) == task.heldout_examples


def test_impossible_tasks_are_refused_in_one_line() -> None:
    cases = [
        (MQAR, {"vocab_size": 8}, r"vocab_size: 8 has 3 keys for 4 pairs; use at least 10"),
        (MQAR, {"seq_len": 12}, r"seq_len: 12 tokens for 4 pairs; use an even number of at least 16"),
        (MQAR, {"seq_len": 17}, r"seq_len: 17 tokens"),
        (MQAR, {"num_pairs": ()}, r"num_pairs: \(\)"),
        (MQAR, {"num_pairs": (2, 2)}, r"num_pairs: \(2, 2\)"),
        (MQAR, {"power_a": 0.0}, r"power_a: 0\.0"),
        (MQAR, {"heldout_examples": 0}, r"heldout_examples: 0"),
        (Copying, {"vocab_size": 3}, r"vocab_size: 3; use at least 4"),
        (SelectiveCopying, {"seq_len": 31}, r"seq_len: 31 tokens cannot hold 16 .*use at least 32"),
        (Copying, {"num_tokens": (0,)}, r"num_tokens: \(0,\)"),
        (InductionHeads, {"vocab_size": 2}, r"vocab_size: 2; use at least 3"),
        (InductionHeads, {"seq_len": 2}, r"seq_len: 2 tokens; use at least 3"),
        (Passkey, {"seq_len": 50}, r"seq_len: 50 bytes cannot hold key and question; use at least"),
        (Passkey, {"lengths": (20,)}, r"lengths: 20 bytes cannot hold"),
        (Passkey, {"lengths": (600,)}, r"lengths: 600 bytes exceed seq_len 512"),
        (Passkey, {"depths": (1.5,)}, r"depths: \(1\.5,\)"),
        (Passkey, {"digits": 0}, r"digits: 0"),
    ]
    for task, fields, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            task(**fields)
        assert "\n" not in str(caught.value)
    for task, fields in (
        (MQAR, {"vocab_size": 10, "seq_len": 16}),
        (Copying, {"seq_len": 32}),
        (Passkey, {"seq_len": 90}),
    ):
        task(**fields).make("train", batch_size=2)
