"""A small folder of text, and every dataset that the contract is checked on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seqmodels.data.base import Dataset
from seqmodels.data.copying import Copying, SelectiveCopying
from seqmodels.data.induction import InductionHeads
from seqmodels.data.mqar import MQAR
from seqmodels.data.passkey import Passkey
from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.data.text import TextFiles
from seqmodels.data.tfds import TFDSText

WORDS = ("state", "gate", "decay", "écho", "mémoire", "scan", "chunk", "delta", "query", "norm", "漢字", "head\n")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 text files of 0 to 400 words, one folder deep and two, and files that are not to be read."""
    root = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(0)
    (root / "deep").mkdir()
    (root / ".hidden").mkdir()
    for number in range(40):
        words = random.choice(WORDS, size=0 if number == 7 else random.integers(1, 400))
        where = root / "deep" if number % 3 == 0 else root
        (where / f"{number}.txt").write_text(" ".join(words), encoding="utf-8")
    (root / "image.bin").write_bytes(b"\xff\xfe\x00")
    (root / ".hidden" / "x.txt").write_bytes(b"\xff")
    return root


@pytest.fixture(scope="session")
def texts(folder: Path) -> TextFiles:
    return TextFiles(paths=(str(folder),), suffixes=(".txt",), seq_len=64)


@pytest.fixture(scope="session")
def prepared(texts: TextFiles, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data_dir with the small folder as ``seqmodels_text``."""
    from seqmodels.data import tfds_builder

    data_dir = tmp_path_factory.mktemp("tfds")
    tfds_builder.prepare(texts, data_dir)
    return str(data_dir)


SIMPLE: dict[str, Callable[[], Dataset]] = {
    "stdlib": lambda: StdlibCorpus(seq_len=128),
    "mqar": lambda: MQAR(seq_len=32, vocab_size=64, num_pairs=(2, 4), heldout_examples=37),
    "copying": lambda: Copying(seq_len=24, num_tokens=(6, 9), heldout_examples=37),
    "selective copying": lambda: SelectiveCopying(seq_len=24, num_tokens=(6, 9), heldout_examples=37),
    "induction": lambda: InductionHeads(seq_len=24, heldout_examples=37),
    "passkey": lambda: Passkey(seq_len=160, lengths=(120, 160), heldout_examples=37),
    "passkey in source": lambda: Passkey(seq_len=160, filler="stdlib", heldout_examples=37),
}
FROM_FILES = ("text", "text first_fit", "text best_fit", "tfds", "tfds first_fit", "tfds best_fit")
NAMES = (*SIMPLE, *FROM_FILES)


@pytest.fixture(scope="session")
def datasets(folder: Path, prepared: str) -> dict[str, Dataset]:
    found = {name: make() for name, make in SIMPLE.items()}
    for name in FROM_FILES:
        kind, _, packing = name.partition(" ")
        shape = {"seq_len": 64, "packing": packing or "chunk"}
        if kind == "text":
            found[name] = TextFiles(paths=(str(folder),), suffixes=(".txt",), **shape)
        else:
            found[name] = TFDSText(name="seqmodels_text", data_dir=prepared, **shape)
    return found


@pytest.fixture(params=NAMES)
def dataset(request: pytest.FixtureRequest, datasets: dict[str, Dataset]) -> Dataset:
    """Every dataset in turn."""
    return datasets[request.param]
