"""The standard library's corpus, and text files: what is read, how it is split, which mistakes are told."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sysconfig
import zlib
from pathlib import Path

import numpy as np
import pytest

from seqmodels.data import stdlib
from seqmodels.data.base import SPLITS
from seqmodels.data.corpus import Document, split_by_name
from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.data.text import TextFiles
from seqmodels.errors import UserError


def test_the_standard_library_is_split_by_file() -> None:
    corpus = StdlibCorpus()
    sizes = {split: len(corpus.bytes_of(split)) for split in SPLITS}
    total = sum(sizes.values())
    assert total > 8_000_000
    assert 0.045 < sizes["valid"] / total <= 0.05 and 0.045 < sizes["test"] / total <= 0.05
    names = {split: set(files) for split, files in corpus.manifest().items()}
    assert not names["train"] & names["valid"] and not names["train"] & names["test"]
    assert not names["valid"] & names["test"]
    every = set().union(*names.values())
    assert {"abc.py", "asyncio/base_events.py", "json/decoder.py"} <= every
    folders = {part for name in every for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    ratio = 8 * len(zlib.compress(corpus.bytes_of("valid"), 9)) / sizes["valid"]
    assert 1.5 < ratio < 2.5  # bits per byte: real text


def test_the_standard_library_is_the_same_every_time() -> None:
    corpus = StdlibCorpus()
    first = corpus.fingerprint()
    stdlib.read_stdlib.cache_clear()
    assert dataclasses.replace(corpus).fingerprint() == first
    assert set(first["splits"]) == set(SPLITS) and len(first["splits"]["train"]["sha256"]) == 64


def test_files_that_are_not_utf8_are_left_out_of_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub" / "tests").mkdir(parents=True)
    (tmp_path / "config-3").mkdir()
    for name in ("sub/tests/a.py", "config-3/a.py", "_sysconfigdata_x.py", "notes.txt"):
        (tmp_path / name).write_text("left out")
    (tmp_path / "latin.py").write_bytes(b"caf\xe9")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "sub" / "good.py").write_text("x = 1\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    found = stdlib.read_stdlib.__wrapped__()
    assert [document.name for split in SPLITS for document in found[split]] == ["sub/good.py"]


def test_rows_hold_the_text_in_order() -> None:
    corpus = StdlibCorpus(seq_len=512)
    rows = corpus.rows("valid", 0)
    targets = np.concatenate([rows[i]["targets"][rows[i]["loss_mask"] > 0] for i in range(len(rows))])
    assert bytes(targets.astype(np.uint8)) == corpus.bytes_of("valid")


def test_splits_do_not_depend_on_the_order_of_files() -> None:
    documents = [Document(f"{i}.py", b"x" * (50 + i)) for i in range(100)]
    assert split_by_name(documents, 0.1, 0.1) == split_by_name(documents[::-1], 0.1, 0.1)
    huge = split_by_name([*documents, Document("huge.py", b"x" * 9000)], 0.1, 0.1)
    assert "huge.py" in {document.name for document in huge["train"]}


def test_a_folder_reads_only_the_named_suffixes(texts: TextFiles) -> None:
    names = {name for files in texts.manifest().values() for name in files}
    assert names == {f"deep/{i}.txt" if i % 3 == 0 else f"{i}.txt" for i in range(40)}


def test_a_single_file_is_split_by_position_between_characters(tmp_path: Path) -> None:
    text = "漢字 text. " * 400
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    corpus = TextFiles(paths=(str(tmp_path / "one.txt"),), valid_fraction=0.1, test_fraction=0.2, seq_len=32)
    parts = [corpus.bytes_of(split) for split in SPLITS]
    assert b"".join(parts).decode() == text and all(part.decode() for part in parts)
    np.testing.assert_allclose([len(part) / len(text.encode()) for part in parts], [0.7, 0.1, 0.2], atol=0.002)


def test_a_moved_folder_is_the_same_data_and_a_changed_file_is_not(folder: Path, tmp_path: Path) -> None:
    def corpus(root: Path) -> TextFiles:
        return TextFiles(paths=(str(root),), suffixes=(".txt",), seq_len=64)

    shutil.copytree(folder, tmp_path / "moved")
    state = corpus(folder).make("train", batch_size=2).get_state()
    corpus(tmp_path / "moved").make("train", batch_size=2).set_state(state)
    with open(tmp_path / "moved" / "1.txt", "a") as file:
        file.write("more")
    with pytest.raises(UserError, match=r"data state: saved with splits\.\w+\.bytes"):
        corpus(tmp_path / "moved").make("train", batch_size=2).set_state(state)
    assert "paths" not in json.dumps(corpus(folder).fingerprint())


def test_several_paths_keep_their_files_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.txt").write_text(name * 100)
    corpus = TextFiles(paths=(str(tmp_path / "a"), str(tmp_path / "b")), seq_len=8)
    assert set(corpus.manifest()["train"]) == {"0:same.txt", "1:same.txt"}


def test_mistakes_are_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a")
    cases = [
        ({"paths": (str(tmp_path / "none"),)}, r"none' does not exist"),
        ({"paths": (str(folder),), "suffixes": (".md",)}, r"no file with suffix \.md among 41 files"),
        ({"paths": (str(tmp_path / "latin.txt"),)}, r"latin\.txt' is not UTF-8 at byte 3 \(0xe9\); convert it"),
        ({"paths": (str(tmp_path / "empty.txt"),)}, r"no text in .*all files are empty"),
        ({"paths": (str(tmp_path / "short.txt"),)}, r"split: 'valid' of TextFiles is empty"),
        ({"paths": ()}, r"paths: \(\) is not a tuple of paths"),
        ({"paths": "a.txt"}, r"paths: 'a\.txt' is not a tuple of paths"),
        ({"paths": ("a",), "valid_fraction": 1.0}, r"valid_fraction: 1\.0 is not a fraction"),
        ({"paths": ("a",), "valid_fraction": 0.5, "test_fraction": 0.5}, r"leaves nothing to train on"),
        ({"paths": ("a",), "seq_len": 0}, r"seq_len: 0 tokens"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            TextFiles(**fields).make("valid", batch_size=1)
        assert "\n" not in str(caught.value)


def test_file_names_need_not_be_utf8(tmp_path: Path) -> None:
    for name in (b"caf\xe9.txt", b"new\nline.txt", b"-dash.txt"):
        with open(bytes(tmp_path) + b"/" + name, "w") as file:
            file.write("some text\n" * 50)
    corpus = TextFiles(paths=(str(tmp_path),), seq_len=16)
    assert sum(len(corpus.bytes_of(split)) for split in SPLITS) == 3 * 500
    assert len(corpus.fingerprint()["splits"]["train"]["sha256"]) == 64
