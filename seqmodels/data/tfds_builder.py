"""Prepare text as a TFDS dataset, without TensorFlow and without a network.

    python -m seqmodels.data.tfds_builder --source stdlib --data-dir data
    python -m seqmodels.data.tfds_builder --source notes/ --source book.txt --suffix .md --suffix .txt --data-dir data

What it writes is read back by ``TFDSText(name="seqmodels_stdlib", data_dir="data")``, or by ``tfds.data_source``. This
module imports tensorflow_datasets: import it where it is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from seqmodels.data.corpus import TextCorpus
from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.data.text import TextFiles
from seqmodels.errors import UserError

SPLIT_NAMES = {"train": "train", "valid": "validation", "test": "test"}


class SeqmodelsText(tfds.core.GeneratorBasedBuilder):
    """Documents with a ``name`` and a ``text``, in the splits train, validation and test.

    `source` is needed to prepare the data, not to read it.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source: TextCorpus | None = None, **kwargs: Any) -> None:  # TFDS's own arguments
        self._source = source
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description="Text documents.", features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self._source is None:
            raise UserError(f"source: {self.name} is made from local text; prepare it with seqmodels.data.tfds_builder")
        splits = self._source.documents()
        return {SPLIT_NAMES[split]: self._generate_examples(documents) for split, documents in splits.items()}

    def _generate_examples(self, documents: Sequence[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, text in documents:
            yield name, {"name": name, "text": text}


class SeqmodelsStdlib(SeqmodelsText):
    """The source text of the Python standard library; see `seqmodels.data.stdlib`."""


def prepare(source: TextCorpus, data_dir: str | Path) -> Path:
    """Write the documents of `source` as ``seqmodels_stdlib`` or ``seqmodels_text`` below `data_dir`.

    Returns:
        The folder of the prepared version.

    Raises:
        UserError: there is such a dataset already, or `source` cannot be read.
    """
    builder_class = SeqmodelsStdlib if isinstance(source, StdlibCorpus) else SeqmodelsText
    data_dir = Path(data_dir).expanduser()
    builder = builder_class(source=source, data_dir=data_dir, file_format="array_record")
    target = Path(builder.data_dir)
    if target.exists():
        raise UserError(f"data_dir: {str(target)!r} exists already; remove it or choose another data_dir")
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=offline)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m seqmodels.data.tfds_builder", description="Prepare text for TFDS.")
    parser.add_argument("--source", action="append", required=True, help="'stdlib', or a file or folder (repeatable)")
    parser.add_argument("--suffix", action="append", default=[], help="files to read in folders, as .txt (repeatable)")
    parser.add_argument("--data-dir", required=True, help="where TFDS data lies")
    options = parser.parse_args(arguments)
    try:
        if options.source == ["stdlib"]:
            source: TextCorpus = StdlibCorpus()
        else:
            source = TextFiles(paths=tuple(options.source), suffixes=tuple(options.suffix))
        print(prepare(source, options.data_dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
