"""Time programs against each other, and say where they ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

Name = TypeVar("Name", bound=Hashable)
T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


def interleave(
    programs: Mapping[Name, Callable[[], Any]],
    *,
    rounds: int = 7,
    sample_seconds: float = 0.02,
    summary: Callable[[list[float]], float] = statistics.median,
) -> dict[Name, float]:
    """Seconds per call of every program: the median over all turns, or another `summary`.

    The programs take turns (A B, then B A, and so on), so that whatever else the machine does falls on all of them
    alike. A program shorter than `sample_seconds` is called several times per turn. The first call is not counted.
    """
    repeats = {}
    for name, program in programs.items():
        jax.block_until_ready(program())
        repeats[name] = max(1, round(sample_seconds / max(_seconds(program, 1), 1e-7)))
    samples: dict[Name, list[float]] = {name: [] for name in programs}
    for turn in range(rounds):
        for name in list(programs)[:: 1 if turn % 2 == 0 else -1]:
            samples[name].append(_seconds(programs[name], repeats[name]))
    return {name: summary(values) for name, values in samples.items()}


def _seconds(program: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    result = None
    for _ in range(repeats):
        result = program()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds that one call takes, and its result."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Arguments, outputs and temporaries of a compiled program: the most it can hold at once."""
    memory: Any = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes


def environment() -> dict[str, Any]:
    """Device, versions, commit and time, as every result file records them."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), **versions},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "seqmodels", "benchmarks/*.py")),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
