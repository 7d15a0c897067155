"""The Python standard library's own source text: 12 MB of real text on every machine that runs this."""

from __future__ import annotations

import dataclasses
import functools
import platform
import sysconfig
from pathlib import Path
from typing import Any

from seqmodels.data.corpus import Document, Splits, TextCorpus, split_by_name

LEFT_OUT_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Tests are often stripped by distributions, and packages are not the standard library."""
LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")
"""Records of how this one interpreter was built."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StdlibCorpus(TextCorpus):
    """The ``.py`` files of the running interpreter's standard library, about 90/5/5 % of the bytes by file.

    Test folders, installed packages, build records and files that are not UTF-8 are left out. The text depends on the
    Python version; `fingerprint` records it with hashes, `manifest` lists the files.
    """

    def documents(self) -> Splits:
        return read_stdlib()

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"python": platform.python_version()}


@functools.lru_cache(maxsize=1)
def read_stdlib() -> Splits:
    """Read and split the files; the same interpreter always gives the same result."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT_FOLDERS.isdisjoint(relative.parts) and not relative.as_posix().startswith(LEFT_OUT_PREFIXES):
            text = path.read_bytes()
            if text and _is_utf8(text):
                documents.append(Document(relative.as_posix(), text))
    return split_by_name(documents, valid=0.05, test=0.05)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
