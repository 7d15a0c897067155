"""Tokenizers: text comes back, documents begin with BOS, mistakes are told."""

from __future__ import annotations

import pickle
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers

from seqmodels.data.text import TextFiles
from seqmodels.data.tokenizer import ByteTokenizer, HFTokenizer
from seqmodels.errors import UserError
from tests.data.conftest import WORDS


def train(path: Path, special: list[str]) -> str:
    """A byte-level BPE of 400 tokens."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([" ".join(WORDS)] * 20, vocab_size=400, special_tokens=special, show_progress=False)
    bpe.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def bpe_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(tmp_path_factory.mktemp("bpe") / "tokenizer.json", ["<unk>", "<s>"])


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode()) and tokenizer.decode(ids) == text
    document = tokenizer.document(text)
    assert document.dtype == np.int32 and document.tolist() == [256, *ids]
    assert tokenizer.decode(document) == text  # the special token is left out


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert ByteTokenizer().decode([104, 0xFF, 105, 256]) == "h\ufffdi"
    assert ByteTokenizer().vocab_size == 257


def test_a_tokenizer_file_round_trips(bpe_file: str) -> None:
    tokenizer = HFTokenizer(bpe_file)
    text = "delta gate, mémoire 漢字\n and what BPE has not seen: ☃"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and len(ids) < len(text.encode()) and max(ids) < tokenizer.vocab_size
    assert tokenizer.bos_id == 1
    assert tokenizer.document(text).tolist() == [1, *ids] and tokenizer.decode([1, *ids]) == text
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids


def test_bos_may_be_named_or_absent(bpe_file: str, tmp_path: Path) -> None:
    assert HFTokenizer(bpe_file, bos="<unk>").bos_id == 0
    bare = HFTokenizer(train(tmp_path / "bare.json", []))
    assert bare.bos_id is None
    assert bare.document("gate").tolist() == bare.encode("gate")
    with pytest.raises(UserError, match=r"bos: '<unc>' is not in the vocabulary.*did you mean '<unk>'\?"):
        HFTokenizer(bpe_file, bos="<unc>")


def test_the_same_file_elsewhere_is_the_same_tokenizer(bpe_file: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(Path(bpe_file).read_bytes())
    assert HFTokenizer(str(copy)).fingerprint() == HFTokenizer(bpe_file).fingerprint()
    other = HFTokenizer(train(tmp_path / "other.json", ["<s>"]))
    assert other.fingerprint() != HFTokenizer(bpe_file).fingerprint()


def test_broken_tokenizer_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; give the path of a tokenizer\.json"):
        HFTokenizer(str(tmp_path / "none.json")).encode("x")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json") as caught:
        HFTokenizer(str(broken)).fingerprint()
    assert "\n" not in str(caught.value)


def test_a_corpus_reads_with_any_tokenizer(bpe_file: str, folder: Path) -> None:
    by_bytes = TextFiles(paths=(str(folder),), suffixes=(".txt",), seq_len=64)
    by_bpe = TextFiles(paths=(str(folder),), suffixes=(".txt",), seq_len=64, tokenizer_file=bpe_file)
    assert by_bpe.vocab_size == HFTokenizer(bpe_file).vocab_size <= 400
    read = {}
    for corpus in (by_bytes, by_bpe):
        rows = corpus.rows("valid", 0)
        targets = np.concatenate([rows[i]["targets"][rows[i]["loss_mask"] > 0] for i in range(len(rows))])
        read[corpus] = corpus.tokenizer.decode(targets)
    assert read[by_bytes] == read[by_bpe] == by_bytes.bytes_of("valid").decode()
    assert by_bytes.fingerprint() != by_bpe.fingerprint()
