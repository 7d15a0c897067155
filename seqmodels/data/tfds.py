"""Data, above all text, from TensorFlow Datasets, read without TensorFlow, and never downloaded.

Documents are tokenised and packed as they stream by, on Grain, so the data may be larger than memory. With ``repeat``
each shard packs its own documents: rows then depend on the number of shards, and a position can be resumed on the same
number only. One epoch (``repeat=False``) is packed whole by every shard, which keeps its rows, so it is exact on any
number.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqmodels.data.base import SPLITS, Checkpointable, Dataset, Shard, Tokenizer, stream_seed
from seqmodels.data.packing import Packing
from seqmodels.data.tokenizer import load_tokenizer
from seqmodels.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared(Dataset):
    """A dataset that TFDS has prepared, by name.

    The data must lie prepared in `data_dir` in the format ``array_record``; the error says how to prepare it.

    Raises (on first use of the data):
        UserError: not prepared, prepared in another format, or no such split or field.
    """

    name: str
    """``name[/config][:version]``; the newest prepared version without one."""
    data_dir: str = "~/tensorflow_datasets"
    splits: tuple[str, str, str] = ("train", "validation", "test")
    """What TFDS calls train, valid and test; slices such as ``"train[:95%]"`` work."""

    @functools.cached_property
    def directory(self) -> Path:
        """Where the prepared version lies."""
        return prepared_directory(self.name, self.data_dir)

    @property
    def features(self) -> dict[str, Any]:
        """TFDS's record of every field of an example."""
        features = json.loads((self.directory / "features.json").read_text())
        return features.get("featuresDict", {}).get("features", {})

    def fingerprint(self) -> dict[str, Any]:
        """The fields, and the version and hash of TFDS's record of the prepared data."""
        fields = super().fingerprint()
        del fields["data_dir"]
        record = hashlib.sha256((self.directory / "dataset_info.json").read_bytes()).hexdigest()
        return fields | {"prepared": {"version": self.directory.name, "info_sha256": record}}

    def examples(self, split: str, *fields: str) -> Sequence[dict[str, Any]]:
        """Random access to the examples of a split, which must have these fields."""
        import tensorflow_datasets as tfds

        for field in fields:
            if field not in (among := self.features):
                raise UserError(f"field: {field!r} is not a feature of {self.name}; use one of {', '.join(among)}")
        info = json.loads((self.directory / "dataset_info.json").read_text())
        wanted = self.splits[SPLITS.index(split)]
        known = [entry["name"] for entry in info["splits"]]
        if not any(wanted == name or wanted.startswith((f"{name}[", f"{name}+")) for name in known):
            raise UserError(
                f"splits: {wanted!r} is not a split of {self.name}; use {', '.join(known)} or slices of them"
            )
        name = f"{self.name.partition(':')[0]}:{self.directory.name}"
        try:
            data: Any = tfds.data_source(name, split=wanted, data_dir=os.path.expanduser(self.data_dir), download=False)
        except ValueError as error:  # an empty slice, or a mistake in its syntax
            reason = str(error).splitlines()[0]
            raise UserError(f"splits: {wanted!r} of {self.name} cannot be read ({reason}); name another part") from None
        return data


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDSText(Prepared):
    """A prepared text dataset of TFDS by name, such as ``"lm1b"`` or ``"seqmodels_stdlib:1.0.0"``."""

    field: str = "text"
    """The feature that holds a document."""
    tokenizer_file: str | None = None
    """A Hugging Face ``tokenizer.json``; bytes without one."""
    packing: Packing = "chunk"
    """How documents are laid into rows; see `seqmodels.data.packing`."""
    num_threads: int = 2
    """Threads that read and tokenise. The order of rows does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_threads < 1:
            raise UserError(f"num_threads: {self.num_threads}; use at least 1")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]  # cached
        return load_tokenizer(self.tokenizer_file)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def fingerprint(self) -> dict[str, Any]:
        """As for all prepared data, and the tokenizer."""
        fields = super().fingerprint()
        del fields["tokenizer_file"], fields["num_threads"]
        return fields | {"tokenizer": self.tokenizer.fingerprint()}

    def identity(self, split: str, batch_size: int, seed: int, shard: Shard, repeat: bool) -> dict[str, Any]:
        place = {"shard index": shard.index, "shard count": shard.count} if repeat else {}
        return super().identity(split, batch_size, seed, shard, repeat) | place

    def batches(self, split: str, batch_size: int, seed: int, shard: Shard, repeat: bool) -> Checkpointable:
        from seqmodels.data import streaming

        stream = streaming.Stream(
            self.examples(split, self.field), self.field, self.tokenizer, self.seq_len, self.packing, self.num_threads
        )
        return iter(stream.batches(batch_size, stream_seed(split, seed), shard, repeat))


def prepared_directory(name: str, data_dir: str) -> Path:
    """The folder of a prepared dataset, found without asking TFDS, which might go to the network for a long while.

    Raises:
        UserError: no such dataset or version is prepared there, or its format needs TensorFlow.
    """
    path, _, version = name.partition(":")
    folder = Path(data_dir).expanduser() / path
    prepared = {info.parent.name: info for info in folder.glob("*/dataset_info.json")}
    if version:
        prepared = {found: info for found, info in prepared.items() if found == version}
    if not prepared:
        raise UserError(
            f"name: {name!r} is not prepared in data_dir {data_dir!r}; prepare it with: {_command(path, data_dir)}"
        )
    newest = max(prepared, key=lambda found: [int(number) for number in re.findall(r"\d+", found)])
    file_format = json.loads(prepared[newest].read_text()).get("fileFormat")
    if file_format != "array_record":
        raise UserError(
            f"name: {name!r} is prepared as {file_format}, which needs TensorFlow; "
            f"prepare it in another data_dir with: {_command(path, data_dir)}"
        )
    return prepared[newest].parent


def _command(path: str, data_dir: str) -> str:
    if path in ("seqmodels_stdlib", "seqmodels_text"):
        source = "stdlib" if path == "seqmodels_stdlib" else "FILE_OR_FOLDER"
        return f"python -m seqmodels.data.tfds_builder --source {source} --data-dir {data_dir}"
    builder = f"tfds.builder({path!r}, data_dir={data_dir!r}, file_format='array_record')"
    return f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'
