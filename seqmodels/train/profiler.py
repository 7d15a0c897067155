"""A profiler trace of a few steps, for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from seqmodels.train.experiment import LogConfig


class ProfilerWindow:
    """Traces ``log.profile_steps`` steps from ``log.profile_at`` on into ``profile/`` of the run directory."""

    def __init__(self, run_dir: Path, cfg: LogConfig) -> None:
        self._directory = run_dir / "profile"
        self._first = cfg.profile_at
        self._last = cfg.profile_at + cfg.profile_steps - 1 if cfg.profile_at else 0
        self._open = False

    def before(self, step: int) -> None:
        """Call before update number `step` (from 1)."""
        if self._first and step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._open = True

    def after(self, step: int, result: Any) -> None:
        """Call after update number `step` with what it returned."""
        if self._open and step >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """End a trace that is still open."""
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
