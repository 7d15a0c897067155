"""ListOps: values, lengths, the published shares, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from seqmodels.data.classification import labels
from seqmodels.data.listops import WORDS, ListOps, decode, encode, evaluate, root_accuracy
from seqmodels.errors import UserError

FUNCTIONS = {"[MIN": min, "[MAX": max, "[MED": lambda a: int(np.median(a)), "[SM": lambda a: sum(a) % 10}
SMALL = ListOps(seq_len=60, lengths=(20, 60), max_depth=5, max_args=4)


def value(words: list[str], arities: set[int]) -> int:
    """The value of an expression whose words are taken from the front, by recursion; notes numbers of arguments."""
    word = words.pop(0)
    if word.isdigit():
        return int(word)
    arguments = []
    while words[0] != "]":
        arguments.append(value(words, arities))
    words.pop(0)
    arities.add(len(arguments))
    return FUNCTIONS[word](arguments)


def depth(words: list[str]) -> int:
    """Nodes on the longest way from the root to a digit."""
    open_lists = np.cumsum([(word[0] == "[") - (word == "]") for word in words])
    return 1 + int(open_lists.max())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("[MED 1 2 ]", 1),
        ("[MED 0 9 4 ]", 4),
        ("[MED 3 9 8 6 ]", 7),
        ("[SM 9 9 ]", 8),
        ("[SM 5 5 ]", 0),
        ("[MAX 2 9 [MIN 4 7 ] [SM 5 6 ] ]", 9),
        ("[MIN 5 [SM 3 [MED 8 8 ] [MAX 1 4 ] ] ]", 5),
    ],
)
def test_known_values(text: str, expected: int) -> None:
    assert evaluate(encode(text)) == expected == value(text.split(), set())
    assert decode(encode(text)) == text


@pytest.mark.parametrize("text", ["", "]", "1 2", "[MIN 1 2", "[MIN ]", "[MIN 1 ] ]", "3 ]"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tokens: ") as caught:
        evaluate(encode(text))
    assert "\n" not in str(caught.value)


def test_what_is_no_token_is_refused() -> None:
    for tokens in ([len(WORDS)], [-1], [10, -1, 3, 14]):
        with pytest.raises(ValueError, match=r"tokens: .* is none; use 0 to 14"):
            evaluate(tokens)
    with pytest.raises(ValueError, match="text: 'MIN' is no word of ListOps"):
        encode("MIN 1 2 ]")


def test_rows_are_expressions_with_their_values() -> None:
    lengths, depths, arities = set(), set(), set()
    rows = SMALL.rows("train", 1)
    for i in range(300):
        row = rows[i]
        size = int(row["segment_ids"].sum())
        words = decode(row["tokens"][:size]).split()
        assert row["targets"].sum() == row["targets"][size - 1] == value(list(words), arities)
        assert row["loss_mask"].sum() == row["loss_mask"][size - 1] == 1 and not row["tokens"][size:].any()
        assert words.count("]") == sum(word[0] == "[" for word in words) and words[-1] == "]"
        assert words[0] == f"[{SMALL.slice_names[row['slices']]}"
        lengths.add(size)
        depths.add(depth(words))
    assert min(lengths) >= 20 and max(lengths) <= 60 and len(lengths) > 25
    assert max(depths) == 5 and arities == {2, 3, 4}


def test_the_published_shares() -> None:
    """At full size: lengths, the depth of every tree, the commonest label, and the plateau of the root operator."""
    task = ListOps()
    source = task.rows("test", 0)
    rows = [source[i] for i in range(400)]
    values = np.array([row["targets"].sum() for row in rows])
    roots = np.array([row["slices"] for row in rows])
    lengths = np.array([row["segment_ids"].sum() for row in rows])
    assert lengths.min() > 500 and lengths.max() < 2000
    assert lengths.mean() == pytest.approx(1067, abs=5 * 400 / 20)  # the deviation of one length is about 400
    assert {depth([WORDS[t] for t in row["tokens"][: row["segment_ids"].sum()]]) for row in rows[:40]} == {10}
    assert np.mean(values == 0) == pytest.approx(0.166, abs=5 * 0.019)
    assert np.mean(values[roots == 0] == 0) == pytest.approx(0.56, abs=0.2)
    assert np.mean(values[roots == 1] == 9) == pytest.approx(0.55, abs=0.2)
    plateau = root_accuracy(task, 400)
    assert plateau == pytest.approx(0.37, abs=5 * 0.024)
    assert plateau == sum(np.bincount(values[roots == root]).max() for root in range(4)) / 400


def test_slices_by_length() -> None:
    task = ListOps(seq_len=60, lengths=(20, 59), max_depth=5, max_args=4, slices_by="length")
    assert task.slice_names == ("20-29 tokens", "30-39 tokens", "40-49 tokens", "50-59 tokens")
    batch = next(task.make("valid", batch_size=64))
    np.testing.assert_array_equal((batch["segment_ids"].sum(1) - 20) // 10, batch["slices"])
    assert len(set(batch["slices"].tolist())) == 4
    assert labels(batch).tolist() == batch["targets"].max(1).tolist()


def test_a_finite_training_split_repeats() -> None:
    task = ListOps(seq_len=60, lengths=(20, 60), max_depth=5, train_examples=6)
    first, second = (sorted(map(bytes, next(stream)["tokens"])) for stream in [task.make("train", batch_size=6)] * 2)
    assert first == second and len(set(first)) == 6


def test_impossible_sizes_are_refused() -> None:
    cases = [
        ({"lengths": (501, 3000)}, r"lengths: \(501, 3000\) in 2000 tokens"),
        ({"lengths": (3, 10)}, r"lengths: \(3, 10\)"),
        ({"max_args": 1}, r"max_args=1; use at least 2"),
        ({"max_depth": 3, "max_args": 3}, r"no tree has 501 tokens with max_depth=3.* at most 17"),
        ({"max_args": float("nan")}, r"max_args=nan; use at least 2"),
        ({"lengths": (100,)}, r"lengths: \(100,\); give the shortest and the longest"),
        ({"lengths": 100}, r"lengths: 100; give the shortest and the longest"),
        ({"slices_by": "rot"}, r"slices_by: 'rot'; use 'root' or 'length'"),
        ({"train_examples": 0}, r"train_examples: 0"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            ListOps(**fields)
        assert "\n" not in str(caught.value)
