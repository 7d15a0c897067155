"""The data contract: frozen configs that make resumable, sharded iterators of numpy batches.

A batch is a dict of numpy arrays: ``tokens``, ``targets`` int32 [B,T] (targets are already shifted), ``loss_mask``
float32 [B,T], ``segment_ids`` int32 [B,T] (0 is padding), and for tasks with difficulties ``slices`` int32 [B], an
index into ``slice_names``. Where ``loss_mask`` is 0 the target is 0.

The order of rows is one *global* stream that depends on the split and the seed only. Batch ``k`` of shard ``i`` of
``n`` is the ``i``-th block of ``batch_size`` rows of global batch ``k``, so that the shards' batches, concatenated in
order, are the batches of a single process, and a run may resume on another number of processes. (Endless streams of
TFDS text are the exception; see `seqmodels.data.tfds`.)
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from seqmodels.errors import UserError, suggest

Row = dict[str, np.ndarray]
"""One row of a batch: ``tokens``, ``targets``, ``loss_mask``, ``segment_ids`` [T], and maybe ``slices`` []."""

SPLITS = ("train", "valid", "test")
ENDLESS = 2**62
"""The length of a stream that does not end."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Ids lie in ``0 .. vocab_size - 1``."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The id that starts every document, so that the first token is predicted too; ``None`` if there is none."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are left out."""
        ...

    def document(self, text: str) -> np.ndarray:
        """``[bos_id] + encode(text)`` int32 [N]."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the tokenizer, whatever path it was read from."""
        ...


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part ``index`` of ``count`` of every global batch."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(f"shard: index {self.index} of count {self.count}; use 0 <= index < count")


class Checkpointable(Protocol):
    """An iterator with a state that JSON can hold (every Grain iterator)."""

    def __next__(self) -> Row: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class DataIterator:
    """An iterator over batches whose position can be saved and restored to the byte.

    Made by `Dataset.make`. `identity` says which stream this is; a state of another stream is refused.
    """

    def __init__(self, source: Checkpointable, identity: Mapping[str, Any]) -> None:
        self._source = source
        self._identity = json.loads(json.dumps(identity))

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        return next(self._source)

    def get_state(self) -> bytes:
        """The position after the batches taken so far (what is prefetched does not count)."""
        state = {"identity": self._identity, "position": self._source.get_state()}
        return json.dumps(state, sort_keys=True).encode()

    def set_state(self, state: bytes) -> None:
        """Continue from a position given by `get_state` of an iterator over the same stream.

        Raises:
            UserError: `state` is damaged, or it belongs to another dataset, split, seed or batch size. The iterator
                then stays where it was.
        """
        try:
            saved = json.loads(state)
            identity, position = saved["identity"], saved["position"]
        except (ValueError, KeyError, TypeError):
            raise UserError("data state: not a saved position of a data iterator; take it from get_state()") from None
        _same(identity, self._identity)
        before = self._source.get_state()
        try:
            self._source.set_state(_tuples(position))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            self._source.set_state(before)
            raise UserError(f"data state: the position is damaged ({error}); resume from another checkpoint") from None


def _tuples(value: Any) -> Any:
    """JSON turns tuples into lists; Grain's states compare tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _same(saved: Any, current: Mapping[str, Any]) -> None:
    if not isinstance(saved, dict):
        raise UserError("data state: not a saved position of a data iterator; take it from get_state()")
    for key in sorted({*saved, *current}, key=lambda key: (key != "dataset", key)):
        old, new = saved.get(key), current.get(key)
        if old != new:
            raise UserError(
                f"data state: saved with {key}={old!r}, but this run has {key}={new!r}; "
                "resume with the same value or start a new run"
            )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def digest(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(abc.ABC):
    """A config that makes iterators over batches."""

    seq_len: int = 256
    """Tokens per row."""

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise UserError(f"seq_len: {self.seq_len} tokens; use at least 1")

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Token ids and targets lie in ``0 .. vocab_size - 1``."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """How text becomes tokens; ``None`` for tasks whose tokens are not text."""
        return None

    @property
    def slice_names(self) -> tuple[str, ...]:
        """Names of the values of ``slices``; empty when the batches have no ``slices``."""
        return ()

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data: the config's fields and, for files, their hashes. Goes into the run's config."""
        return {"dataset": type(self).__name__, **dataclasses.asdict(self)}

    def make(
        self, split: str, *, batch_size: int, seed: int = 0, shard: Shard = Shard(), repeat: bool = True
    ) -> DataIterator:
        """An iterator over the batches of one shard.

        Args:
            split: ``"train"``, ``"valid"`` or ``"test"``.
            batch_size: rows per batch and shard.
            seed: of the order of rows, which is shuffled anew in every epoch; generated tasks draw examples with it.
            shard: this process's part of every global batch.
            repeat: for ever, or one epoch. One epoch holds every row once; its last batch is filled with rows of
                padding, so that every shard sees the same number of batches of the same shape. Endless splits
                ignore it.

        Raises:
            UserError: unknown split, batch size or seed out of range, or a split without rows.
        """
        check_request(split, batch_size, seed)
        batches = self.batches(split, batch_size, seed, shard, repeat)
        return DataIterator(batches, self.identity(split, batch_size, seed, shard, repeat))

    @abc.abstractmethod
    def batches(self, split: str, batch_size: int, seed: int, shard: Shard, repeat: bool) -> Checkpointable:
        """The iterator below `make`, for arguments that are in range."""

    def identity(self, split: str, batch_size: int, seed: int, shard: Shard, repeat: bool) -> dict[str, Any]:
        """What must agree for a saved position to mean the same rows."""
        stream = {"split": split, "seed": seed, "repeat": repeat, "global batch": batch_size * shard.count}
        return flatten(self.fingerprint()) | stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomAccessDataset(Dataset):
    """A dataset that knows what row ``i`` of a split is; the position in its stream is one number."""

    @abc.abstractmethod
    def rows(self, split: str, seed: int) -> Sequence[Row]:
        """Random access to the rows of a split in their own order. `seed` matters to generated data only."""

    def batches(self, split: str, batch_size: int, seed: int, shard: Shard, repeat: bool) -> Checkpointable:
        from seqmodels.data import pipeline

        rows = self.rows(split, seed)
        if not len(rows):
            raise UserError(f"split: {split!r} of {type(self).__name__} is empty; give it more data or another split")
        return iter(pipeline.global_batches(rows, batch_size, stream_seed(split, seed), shard, repeat))


def check_request(split: str, batch_size: int, seed: int) -> None:
    """Raise `UserError` when the arguments of `Dataset.make` are out of range."""
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is not one of {', '.join(SPLITS)}{suggest(split, SPLITS)}")
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} rows; use at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed} is out of range; use 0 <= seed < 2**32")


def stream_seed(split: str, seed: int) -> int:
    """A 32-bit seed of its own for every (split, seed): neighbouring seeds share no epoch order."""
    return int(np.random.SeedSequence([seed, SPLITS.index(split)]).generate_state(1)[0])
