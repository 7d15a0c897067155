"""TFDS text: prepared and read without TensorFlow and without a network."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqmodels.data import tfds_builder
from seqmodels.data.text import TextFiles
from seqmodels.data.tfds import TFDSText
from seqmodels.errors import UserError

READ = """
import socket, sys

def refuse(*arguments, **options):
    raise AssertionError("no network")

socket.socket.connect = socket.getaddrinfo = refuse
import seqmodels.data.tfds
assert "tensorflow_datasets" not in sys.modules and "grain" not in sys.modules
dataset = seqmodels.data.tfds.TFDSText(name="seqmodels_text:1.0.0", data_dir=sys.argv[1], seq_len=64)
batch = next(dataset.make("train", batch_size=2))
assert batch["tokens"].shape == (2, 64)
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def everything(dataset: TFDSText, split: str) -> bytes:
    """The text of a split, sorted by byte."""
    batches = dataset.make(split, batch_size=4, repeat=False)
    targets = np.concatenate([batch["targets"][batch["loss_mask"] > 0] for batch in batches])
    return bytes(np.sort(targets).astype(np.uint8))


def test_a_fresh_process_reads_without_tensorflow(prepared: str) -> None:
    subprocess.run([sys.executable, "-c", READ, prepared], check=True, timeout=120)


@pytest.mark.parametrize("packing", ["chunk", "first_fit", "best_fit"])
def test_all_of_the_text_is_there(prepared: str, texts: TextFiles, packing) -> None:
    dataset = TFDSText(name="seqmodels_text", data_dir=prepared, seq_len=64, packing=packing)
    for split in ("train", "test"):
        assert everything(dataset, split) == bytes(sorted(texts.bytes_of(split)))


def test_no_target_belongs_to_another_document(prepared: str) -> None:
    dataset = TFDSText(name="seqmodels_text", data_dir=prepared, seq_len=64)
    for batch in dataset.make("train", batch_size=4, repeat=False):
        same = (batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]) & (batch["segment_ids"][:, 1:] != 0)
        np.testing.assert_array_equal(batch["tokens"][:, 1:][same], batch["targets"][:, :-1][same])
        real = batch["segment_ids"] != 0
        np.testing.assert_array_equal(batch["loss_mask"], real)
        assert not (batch["targets"] == 256).any()
        assert batch["segment_ids"].max() < 64 and set(np.diff(batch["segment_ids"])[same]) == {0}


def test_threads_do_not_change_the_order(prepared: str) -> None:
    one, four = (TFDSText(name="seqmodels_text", data_dir=prepared, seq_len=64, num_threads=n) for n in (1, 4))
    reader = four.make("train", batch_size=4)
    for batch, _ in zip(one.make("train", batch_size=4), range(20)):
        np.testing.assert_array_equal(batch["tokens"], next(reader)["tokens"])
    one.make("train", batch_size=4).set_state(reader.get_state())


def test_slices_of_splits(prepared: str, texts: TextFiles) -> None:
    parts = TFDSText(
        name="seqmodels_text", data_dir=prepared, seq_len=64, splits=("train[:50%]", "train[50%:]", "validation+test")
    )
    train = everything(parts, "train") + everything(parts, "valid")
    assert bytes(sorted(train)) == bytes(sorted(texts.bytes_of("train")))
    assert len(everything(parts, "test")) == len(texts.bytes_of("valid") + texts.bytes_of("test"))


def test_data_that_is_not_prepared_is_told_at_once(prepared: str, tmp_path: Path) -> None:
    old = tmp_path / "seqmodels_text" / "1.0.0"
    shutil.copytree(Path(prepared) / "seqmodels_text" / "1.0.0", old)
    info = json.loads((old / "dataset_info.json").read_text())
    (old / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    cases = [
        ({"name": "lm1b"}, r"tfds\.builder\('lm1b', data_dir='.*', file_format='array_record'\)\.download_and_prep"),
        ({"name": "seqmodels_stdlib"}, r"python -m seqmodels\.data\.tfds_builder --source stdlib --data-dir "),
        ({"name": "seqmodels_text:2.0.0"}, r"'seqmodels_text:2\.0\.0' is not prepared"),
        ({"name": "seqmodels_text", "field": "txt"}, r"field: 'txt' is not a feature .*use one of name, text"),
        (
            {"name": "seqmodels_text", "splits": ("tran", "a", "b")},
            r"'tran' is not a split .*use train, validation, test",
        ),
        (
            {"name": "seqmodels_text", "splits": ("train[:0]", "a", "b")},
            r"'train\[:0\]' of seqmodels_text cannot be read",
        ),
        ({"name": "seqmodels_text", "num_threads": 0}, r"num_threads: 0"),
        ({"name": "seqmodels_text", "data_dir": str(tmp_path)}, r"prepared as tfrecord, which needs TensorFlow"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            TFDSText(**{"data_dir": prepared, **fields}).make("train", batch_size=1)
        assert "\n" not in str(caught.value)


def test_the_newest_version_is_read(prepared: str, tmp_path: Path) -> None:
    for version in ("9.0.0", "10.0.0"):
        shutil.copytree(Path(prepared) / "seqmodels_text" / "1.0.0", tmp_path / "seqmodels_text" / version)
    assert TFDSText(name="seqmodels_text", data_dir=str(tmp_path)).directory.name == "10.0.0"
    assert TFDSText(name="seqmodels_text:9.0.0", data_dir=str(tmp_path)).directory.name == "9.0.0"


def test_the_command_prepares_once_and_tells_mistakes(folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--source", str(folder), "--suffix", ".txt", "--data-dir", str(tmp_path)]
    assert tfds_builder.main(arguments) == 0
    assert capsys.readouterr().out.strip().endswith("1.0.0")
    assert tfds_builder.main(arguments) == 2
    assert "exists already; remove it" in capsys.readouterr().err
    assert tfds_builder.main(["--source", str(tmp_path / "none"), "--data-dir", str(tmp_path / "new")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert TFDSText(name="seqmodels_text", data_dir=str(tmp_path)).make("train", batch_size=1)
