"""Access to the project's shared folder (golden vectors, small data), which does not ship with the product."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(os.environ.get("SEQMODELS_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(relative: str) -> Path:
    """The path of a shared file; skips the test when the whole folder is absent."""
    if not ROOT.is_dir():
        pytest.skip(f"shared folder absent, looked for it at {ROOT}")
    path = ROOT / relative
    assert path.exists(), f"{path} is missing although the shared folder exists"
    return path


@functools.lru_cache(maxsize=1)
def _index() -> dict[str, Any]:
    with open(shared_path("golden/index.json")) as file:
        entries = json.load(file)["entries"]
    if isinstance(entries, dict):
        return entries
    return {entry["file"]: entry for entry in entries}


def golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, float]]:
    """Arrays, attributes and per-array tolerances of the golden case `name`, such as ``"ops/gla"``."""
    with np.load(shared_path(f"golden/{name}.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    attrs = json.loads(str(arrays.pop("attrs_json")))
    entry = _index()[f"{name}.npz"]
    tolerances = {key: float(value["tol"]) for key, value in entry.get("errors", {}).items() if "tol" in value}
    return arrays, attrs, tolerances


def relative_error(actual: Any, expected: Any) -> float:
    """``max|actual - expected| / max|expected|``, the metric of the golden files."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape} against {expected.shape}"
    scale = np.max(np.abs(expected)) if expected.size else 1.0
    error = np.max(np.abs(actual - expected)) if expected.size else 0.0
    assert np.isfinite(error), "not finite"
    return float(error / max(scale, 1e-30))
