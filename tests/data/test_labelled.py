"""Digits and labelled texts: from scikit-learn, from folders, and from prepared TFDS data without TensorFlow."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from seqmodels.data.base import SPLITS
from seqmodels.data.classification import labels
from seqmodels.data.digits import MNIST, Digits
from seqmodels.data.labelled_text import LabelledText, TFDSLabelledText
from seqmodels.errors import UserError


def everything(dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels of a split, without padding."""
    batches = list(dataset.make(split, batch_size=16, repeat=False))
    real = np.concatenate([batch["loss_mask"].any(1) for batch in batches])
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    return tokens[real], np.concatenate([labels(batch) for batch in batches])[real]


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    images, digits = datasets.load_digits(return_X_y=True)
    expected = sorted((*np.rint(image * 255 / 16).astype(int), digit) for image, digit in zip(images, digits))
    found = []
    for split in SPLITS:
        tokens, answers = everything(Digits(), split)
        found += [(*row.tolist(), label) for row, label in zip(tokens, answers)]
        share = np.bincount(answers, minlength=10) / np.bincount(digits)
        np.testing.assert_allclose(share, 0.8 if split == "train" else 0.1, atol=0.006)
    assert sorted(found) == [tuple(map(int, row)) for row in expected]


def test_a_permutation_is_the_same_for_every_picture() -> None:
    plain, permuted = Digits(), Digits(permutation=3)
    assert sorted(permuted.order) == list(range(64)) != permuted.order.tolist()
    a, b = (next(data.make("valid", batch_size=8)) for data in (plain, permuted))
    np.testing.assert_array_equal(a["tokens"][:, permuted.order], b["tokens"])
    np.testing.assert_array_equal(labels(a), labels(b))
    assert plain.fingerprint() != permuted.fingerprint()


@pytest.mark.parametrize("seed", [1.5, -1, True])
def test_a_permutation_needs_a_seed(seed: float) -> None:
    with pytest.raises(UserError, match=f"permutation: {seed}; use a whole number of at least 0"):
        Digits(permutation=seed)  # type: ignore[arg-type]


def test_digits_refuse_too_short_rows() -> None:
    with pytest.raises(UserError, match="seq_len: 60 tokens for 64 pixels; use at least 64"):
        Digits(seq_len=60)
    longer = next(Digits(seq_len=66).make("test", batch_size=4))
    assert longer["loss_mask"][:, 63].all() and not longer["segment_ids"][:, 64:].any()


def test_texts_carry_the_labels_of_their_folders(labelled_folder: Path) -> None:
    data = LabelledText(path=str(labelled_folder), seq_len=64)
    assert data.slice_names == ("bad", "good", "mixed") and data.num_classes == 3
    seen = []
    for split in SPLITS:
        for tokens, label in zip(*everything(data, split)):
            text = data.tokenizer.decode(tokens[tokens != 0])
            assert text.split()[0] == data.slice_names[label]
            seen.append(text)
    assert len(seen) == len(set(seen)) == 120
    cut = next(LabelledText(path=str(labelled_folder), seq_len=8).make("train", batch_size=4))
    assert cut["segment_ids"].all() and cut["loss_mask"][:, -1].all() and (cut["tokens"][:, 0] == 256).all()


def test_a_second_folder_is_the_test_split(labelled_folder: Path, tmp_path: Path) -> None:
    for label in ("good", "bad"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.txt").write_text(f"{label} test")
    data = LabelledText(path=str(labelled_folder), test_path=str(tmp_path), labels=("good", "bad"), seq_len=64)
    tokens, answers = everything(data, "test")
    assert {data.tokenizer.decode(row[row != 0]) for row in tokens} == {"good test", "bad test"}
    assert sorted(answers) == [0, 1] and len(everything(data, "train")[0]) + len(everything(data, "valid")[0]) == 80
    before = data.fingerprint()
    (tmp_path / "good" / "x.txt").write_text("good change")
    assert LabelledText(**{**vars_of(data)}).fingerprint() != before
    for fields, message in [
        ({"labels": ("good", "ugly")}, "labels: no file ugly/"),
        ({"labels": ("good", "good")}, "names a folder twice"),
        ({"valid_fraction": float("nan")}, "valid_fraction=nan"),
        ({"valid_fraction": 1.0}, "leave something to train on"),
        ({"path": str(tmp_path / "none")}, "does not exist"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            LabelledText(**{**vars_of(data), **fields}).make("train", batch_size=1)
        assert "\n" not in str(caught.value)


def vars_of(data: LabelledText) -> dict:
    return {name: getattr(data, name) for name in ("path", "test_path", "labels", "seq_len")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    """A TFDS data_dir with ``small_pictures``: 20 pictures as PNG, with a class and a text; and the pictures."""
    import tensorflow_datasets as tfds
    from PIL import Image

    images = np.random.default_rng(0).integers(256, size=(20, 28, 28), dtype=np.uint8)

    class SmallPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(28, 28, 1)), "text": tfds.features.Text()}
            features["label"] = tfds.features.ClassLabel(num_classes=10)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(16)), "test": self._generate_examples(range(16, 20))}

        def _generate_examples(self, which):
            for i in which:
                Image.fromarray(images[i]).save(file := io.BytesIO(), format="png")
                file.seek(0)
                yield i, {"image": file, "label": i % 10, "text": f"text {i}"}

    data_dir = str(tmp_path_factory.mktemp("pictures"))
    builder = SmallPictures(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return data_dir, images


def test_prepared_pictures(pictures: tuple[str, np.ndarray]) -> None:
    data_dir, images = pictures
    data = MNIST(name="small_pictures", data_dir=data_dir, splits=("train[:75%]", "train[75%:]", "test"))
    found = {}
    for split in SPLITS:
        for tokens, label in zip(*everything(data, split)):
            (which,) = np.flatnonzero((images.reshape(20, -1) == tokens).all(axis=1))
            found[int(which)] = split
            assert label == which % 10
    assert sorted(found) == list(range(20)) and [*found.values()].count("valid") == 4
    assert data.fingerprint()["prepared"]["version"] == "1.0.0" and "data_dir" not in data.fingerprint()
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match=r"'mnist' is not prepared .* prepare it with"):
        MNIST(data_dir=data_dir).make("train", batch_size=1)


def test_prepared_texts_with_labels(pictures: tuple[str, np.ndarray]) -> None:
    data = TFDSLabelledText(name="small_pictures", data_dir=pictures[0], seq_len=16)
    assert data.num_classes == 10 and data.slice_names[3] == "label 3"
    tokens, answers = everything(data, "test")
    texts = {data.tokenizer.decode(row[row != 0]): int(label) for row, label in zip(tokens, answers)}
    assert texts == {f"text {i}": i % 10 for i in range(16, 20)}
    with pytest.raises(UserError, match="label_field: 'text' of small_pictures holds no classes"):
        TFDSLabelledText(name="small_pictures", data_dir=pictures[0], label_field="text").slice_names  # noqa: B018
