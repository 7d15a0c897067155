"""A small folder of text, and every dataset that the contract is checked on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seqmodels.data.base import Dataset
from seqmodels.data.copying import Copying, SelectiveCopying
from seqmodels.data.digits import Digits
from seqmodels.data.induction import InductionHeads
from seqmodels.data.labelled_text import LabelledText
from seqmodels.data.listops import ListOps
from seqmodels.data.mqar import MQAR
from seqmodels.data.passkey import Passkey
from seqmodels.data.pathfinder import Pathfinder
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
    "listops": lambda: ListOps(seq_len=40, lengths=(12, 38), max_depth=4, heldout_examples=37),
    "pathfinder": lambda: Pathfinder(contour_length=2, distractors=0, heldout_examples=19),
    "digits": lambda: Digits(permutation=0),
}
FROM_FILES = ("text", "text first_fit", "text best_fit", "tfds", "tfds first_fit", "tfds best_fit")
NAMES = (*SIMPLE, *FROM_FILES, "labelled text")


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 texts of each of three labels, which begin with their label, and a file beside the labels."""
    root = tmp_path_factory.mktemp("labelled")
    (root / "README.txt").write_text("not a text")
    for label in ("bad", "good", "mixed"):
        (root / label).mkdir()
        for number in range(40):
            (root / label / f"{number}.txt").write_text(f"{label} {number} é" + " word" * (number % 7))
    return root


@pytest.fixture(scope="session")
def datasets(folder: Path, prepared: str, labelled_folder: Path) -> dict[str, Dataset]:
    found = {name: make() for name, make in SIMPLE.items()}
    found["labelled text"] = LabelledText(path=str(labelled_folder), seq_len=32)
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
