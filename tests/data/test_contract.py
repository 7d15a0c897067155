"""What every dataset promises: shapes, resuming to the byte, shards, splits, and refusals in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable

import numpy as np
import pytest

from seqmodels.data.base import SPLITS, Dataset, Row, Shard
from seqmodels.data.tfds import TFDSText
from seqmodels.errors import UserError

DTYPES = {"tokens": np.int32, "targets": np.int32, "loss_mask": np.float32, "segment_ids": np.int32, "slices": np.int32}


def digest(batches: Iterable[Row]) -> list[str]:
    """A hash per batch."""
    return [hashlib.sha256(b"".join(b[key].tobytes() for key in sorted(b))).hexdigest() for b in batches]


def take(iterator: Iterable[Row], count: int) -> list[Row]:
    return [batch for batch, _ in zip(iterator, range(count))]


def refusal(action, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def real_rows(batches: Iterable[Row]) -> list[bytes]:
    """The rows that are not padding, in order."""
    return [
        b"".join(b[key][i].tobytes() for key in sorted(b))
        for b in batches
        for i in np.flatnonzero(b["segment_ids"][:, 0])
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_batches_have_the_promised_form(dataset: Dataset, split: str) -> None:
    T = dataset.seq_len
    for batch in take(dataset.make(split, batch_size=3), 3):
        assert set(batch) == set(DTYPES) - (set() if dataset.slice_names else {"slices"})
        for key, array in batch.items():
            assert array.dtype == DTYPES[key]
            assert array.shape == ((3,) if key == "slices" else (3, T))
        assert batch["tokens"].min() >= 0 and batch["tokens"].max() < dataset.vocab_size
        assert batch["targets"].min() >= 0 and batch["targets"].max() < dataset.vocab_size
        assert set(np.unique(batch["loss_mask"])) <= {0.0, 1.0} and batch["loss_mask"].any()
        assert not batch["targets"][batch["loss_mask"] == 0].any()
        assert not batch["loss_mask"][batch["segment_ids"] == 0].any()
        if dataset.slice_names:
            assert batch["slices"].min() >= 0 and batch["slices"].max() < len(dataset.slice_names)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_restored_state_gives_the_same_bytes(dataset: Dataset, after: int) -> None:
    make = lambda: dataset.make("train", batch_size=4, seed=3)  # noqa: E731
    whole = make()
    before = digest(take(whole, after)) if after else []
    state = whole.get_state()
    expected = digest(take(whole, 7))
    assert len(set(before + expected)) == after + 7
    resumed = make()
    next(resumed)
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert digest(take(resumed, 7)) == expected


def test_resuming_within_and_past_an_epoch(datasets: dict[str, Dataset]) -> None:
    for name in ("text", "text best_fit", "tfds", "tfds first_fit"):
        rows = len(real_rows(datasets[name].make("valid", batch_size=1, repeat=False)))
        whole = datasets[name].make("valid", batch_size=3)
        take(whole, rows // 3 + 2)
        state = whole.get_state()
        resumed = datasets[name].make("valid", batch_size=3)
        resumed.set_state(state)
        assert digest(take(resumed, 2 * rows // 3)) == digest(take(whole, 2 * rows // 3))


def test_one_epoch_ends_and_resumes_at_its_end(dataset: Dataset) -> None:
    def make():
        return dataset.make("valid", batch_size=16, repeat=False)

    expected = digest(make())
    iterator = make()
    states = [iterator.get_state()]
    for _ in iterator:
        states.append(iterator.get_state())
    for at in (0, len(expected) // 2, len(expected)):
        resumed = make()
        resumed.set_state(states[at])
        assert digest(resumed) == expected[at:]


def test_seeds_and_splits_differ(dataset: Dataset) -> None:
    streams = [("train", 0), ("train", 1), ("valid", 0), ("test", 0)]
    rows = [real_rows(take(dataset.make(split, batch_size=4, seed=seed), 2)) for split, seed in streams]
    assert rows[0] != rows[1]
    for held_out in rows[2:]:
        assert not set(rows[0]) & set(held_out)


def test_held_out_splits_share_no_row(datasets: dict[str, Dataset]) -> None:
    for name in ("text", "tfds"):
        splits = [set(real_rows(datasets[name].make(split, batch_size=4, repeat=False))) for split in SPLITS]
        assert all(splits) and not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


@pytest.mark.parametrize("count", [2, 3])
def test_shards_make_up_the_whole(dataset: Dataset, count: int) -> None:
    """Concatenated in order, the shards' batches are those of one process (endless streams are the exception)."""
    for split, repeat in (("test", False), ("train", True)):
        if repeat and isinstance(dataset, TFDSText):
            continue
        whole = take(dataset.make(split, batch_size=2 * count, repeat=repeat), 4)
        parts = [take(dataset.make(split, batch_size=2, shard=Shard(i, count), repeat=repeat), 4) for i in range(count)]
        joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts)]
        assert digest(joined) == digest(whole)
        assert len({len(part) for part in parts}) == 1


def test_streamed_shards_cover_every_document_once(datasets: dict[str, Dataset]) -> None:
    dataset = datasets["tfds"]
    size = sum(int(b["loss_mask"].sum()) for b in dataset.make("train", batch_size=4, repeat=False))
    mean = np.zeros(257)
    for i in range(2):
        seen = np.zeros(257)
        for batch in take(dataset.make("train", batch_size=4, shard=Shard(i, 2)), 400):
            seen += np.bincount(batch["targets"][batch["loss_mask"] > 0], minlength=257)
        mean += seen / seen.sum() / 2
    once = np.zeros(257)
    for batch in dataset.make("train", batch_size=4, repeat=False):
        once += np.bincount(batch["targets"][batch["loss_mask"] > 0], minlength=257)
    assert once.sum() == size
    np.testing.assert_allclose(mean, once / size, atol=3e-3)


def test_a_run_may_resume_on_another_number_of_shards(datasets: dict[str, Dataset]) -> None:
    for name in ("stdlib", "mqar"):
        whole = datasets[name].make("train", batch_size=6)
        take(whole, 3)
        state = whole.get_state()
        expected = digest(take(whole, 3))
        for count in (2, 3):
            parts = []
            for i in range(count):
                part = datasets[name].make("train", batch_size=6 // count, shard=Shard(i, count))
                part.set_state(state)
                parts.append(take(part, 3))
            joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts)]
            assert digest(joined) == expected


def test_streams_refuse_another_number_of_shards(datasets: dict[str, Dataset]) -> None:
    state = datasets["tfds"].make("train", batch_size=4).get_state()
    other = datasets["tfds"].make("train", batch_size=2, shard=Shard(0, 2))
    assert "shard count=1" in refusal(other.set_state, state)


def test_states_of_other_streams_are_refused(datasets: dict[str, Dataset]) -> None:
    dataset = datasets["mqar"]
    iterator = dataset.make("train", batch_size=4)
    state = iterator.get_state()
    others = {
        "seed=0": dataset.make("train", batch_size=4, seed=1),
        "split='train'": dataset.make("valid", batch_size=4),
        "global batch=4": dataset.make("train", batch_size=2),
        "repeat=True": dataset.make("train", batch_size=4, repeat=False),
        "vocab_size=64": dataclasses.replace(dataset, vocab_size=66).make("train", batch_size=4),
        "dataset='MQAR'": datasets["copying"].make("train", batch_size=4),
    }
    for part, other in others.items():
        assert part in refusal(other.set_state, state)
    for broken in (b"", b"\xff", b"{}", b"[1]", b"3", state[:-9]):
        assert "not a saved position" in refusal(iterator.set_state, broken)
    for position in ({}, {"next_index": -1}, {"next_index": 2**70}, {"next_index": "3"}, None, 3):
        damaged = json.dumps(json.loads(state) | {"position": position}).encode()
        assert "damaged" in refusal(iterator.set_state, damaged)
    assert digest(take(iterator, 2)) == digest(take(dataset.make("train", batch_size=4), 2))


def test_bad_requests_are_refused(datasets: dict[str, Dataset]) -> None:
    dataset = datasets["text"]
    assert "did you mean 'train'?" in refusal(dataset.make, "trian", batch_size=1)
    assert "batch_size: 0" in refusal(dataset.make, "train", batch_size=0)
    assert "seed: -1" in refusal(dataset.make, "train", batch_size=1, seed=-1)
    assert "seq_len: 0" in refusal(dataclasses.replace, dataset, seq_len=0)
    with pytest.raises(ValueError, match="index 2 of count 2"):
        Shard(2, 2)


def test_configs_and_fingerprints_are_plain(dataset: Dataset) -> None:
    json.dumps(dataclasses.asdict(dataset))
    fingerprint = json.loads(json.dumps(dataset.fingerprint()))
    assert fingerprint["dataset"] == type(dataset).__name__
    assert hash(dataset) == hash(dataclasses.replace(dataset))
    assert dataclasses.replace(dataset).fingerprint() == dataset.fingerprint()
