"""Packing: nothing is lost, nothing leaks across documents."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from seqmodels.data.packing import PackedRows, Packing, Tokens, plan_rows

BOS = 999


def pack(lengths: list[int], seq_len: int, packing: Packing) -> PackedRows:
    """Documents of the given lengths, every token its own number, BOS first."""
    first = np.cumsum([0, *lengths])
    documents = [np.append(BOS, 1000 + np.arange(a, a + n)) for a, n in zip(first, lengths)]
    tokens = Tokens.of(documents, vocab_size=2**16)
    return PackedRows(tokens, plan_rows(tokens.offsets, seq_len, packing), seq_len)


documents = st.lists(st.integers(0, 30), max_size=12)


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(documents, st.integers(1, 12), st.sampled_from(["chunk", "first_fit", "best_fit"]))
def test_every_token_is_predicted_once_from_the_one_before(lengths: list[int], seq_len: int, packing: Packing) -> None:
    rows = pack(lengths, seq_len, packing)
    seen = []
    for row in (rows[i] for i in range(len(rows))):
        assert all(array.shape == (seq_len,) for array in row.values())
        real = row["segment_ids"] != 0
        assert real[0] and np.all(np.diff(real.astype(int)) <= 0), "padding comes last"
        np.testing.assert_array_equal(row["loss_mask"], real)
        assert not row["tokens"][~real].any() and not row["targets"][~real].any()
        assert set(np.diff(row["segment_ids"][real])) <= {0, 1} and row["segment_ids"][0] == 1
        for segment in range(1, row["segment_ids"].max() + 1):
            inputs, targets = (row[key][row["segment_ids"] == segment] for key in ("tokens", "targets"))
            np.testing.assert_array_equal(inputs[1:], targets[:-1])  # one document, in order
            first = targets[0] - 1000
            begins = first in np.cumsum([0, *lengths])
            assert inputs[0] == (BOS if begins else targets[0] - 1)
        seen += row["targets"][real].tolist()
    assert sorted(seen) == list(range(1000, 1000 + sum(lengths)))
    if packing == "chunk":
        assert seen == sorted(seen)
        assert len(rows) == -(-sum(lengths) // seq_len)


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(documents, st.integers(1, 12))
def test_fitting_cuts_only_what_is_too_long(lengths: list[int], seq_len: int) -> None:
    for packing in ("first_fit", "best_fit"):
        rows = pack(lengths, seq_len, packing)
        pieces = sum(int(rows[i]["segment_ids"].max()) for i in range(len(rows)))
        assert pieces == sum(-(-n // seq_len) for n in lengths)
        room = [seq_len - int(rows[i]["loss_mask"].sum()) for i in range(len(rows))]
        shortest = [np.bincount(rows[i]["segment_ids"])[1:].min() for i in range(len(rows))]
        if packing == "first_fit":  # a later row's piece had no room in an earlier row
            assert all(shortest[i] > room[j] for i in range(len(rows)) for j in range(i))


def test_best_fit_fills_the_fullest_row() -> None:
    rows = pack([6, 5, 3, 2, 4], 10, "best_fit")
    assert [int(rows[i]["loss_mask"].sum()) for i in range(len(rows))] == [10, 10]
    first = pack([7, 5, 3], 10, "first_fit")
    assert first[0]["targets"].tolist() == [*range(1000, 1007), *range(1012, 1015)]


@pytest.mark.parametrize("packing", ["chunk", "first_fit", "best_fit"])
def test_nothing_to_pack(packing: Packing) -> None:
    assert len(pack([], 4, packing)) == len(pack([0, 0], 4, packing)) == 0


def test_large_vocabularies_need_more_than_16_bits() -> None:
    assert Tokens.of([np.array([70000])], vocab_size=70001).flat.tolist() == [70000]
    assert Tokens.of([np.array([65535])], vocab_size=65536).flat.dtype == np.uint16
