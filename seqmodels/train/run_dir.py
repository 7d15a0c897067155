"""The directory of a run, checked before anything is computed.

``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``samples/``, ``loss.png``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from seqmodels.errors import UserError
from seqmodels.train import checkpoint


class RunDir:
    """Paths inside a run directory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"

    def open(self, resume: bool) -> None:
        """Create the directory, or make sure that there is a run to resume. Overwrites nothing.

        Raises:
          UserError: a run is there already, there is none to resume, or nothing can be written.
        """
        if resume and not self.config.is_file():
            raise UserError(f"run directory {self.path} has no config.json to resume from; leave --resume out")
        if not resume and jax.process_index() == 0 and self._holds_a_run():
            raise UserError(f"run directory {self.path} holds a run already; use --resume or another --run-dir")
        if jax.process_index() == 0:
            self._probe()

    def _holds_a_run(self) -> bool:
        """Whether something would be lost; what a failed start leaves behind does not count."""
        return self.config.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def _probe(self) -> None:
        probe = self.path / ".writable"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            with open(probe, "wb") as file:
                file.write(bytes(1 << 16))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"run directory {self.path} cannot be written ({error.strerror}); choose another --run-dir"
            ) from error
        finally:
            if probe.exists():
                probe.unlink()

    def require_space(self, state: Any) -> None:
        """Raise `UserError` if a checkpoint of the abstract `state` cannot fit on the disk."""
        needed, free = checkpoint.room(self.path, state)
        if free < needed:
            raise UserError(
                f"run directory {self.path} has {free / 1e6:.1f} MB free but a checkpoint takes {needed / 1e6:.1f} MB; "
                "free space or choose another --run-dir"
            )

    def write_config(self, text: str) -> None:
        """Write ``config.json`` (first process only)."""
        if jax.process_index() == 0:
            partial = self.config.with_suffix(".partial")
            partial.write_text(text)
            os.replace(partial, self.config)
