"""SIGTERM and SIGINT ask the loop to save and stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import jax
import numpy as np


class StopRequest:
    """Inside this context the first SIGTERM or SIGINT is only noted; a second SIGINT interrupts as usual."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop after `step`. Processes ask each other every so many steps, so that all stop at one."""
        if jax.process_count() == 1:
            return self.received is not None
        if step % every:
            return False
        from jax.experimental import multihost_utils

        asked = bool(np.any(multihost_utils.process_allgather(np.int32(self.received is not None))))
        if asked and self.received is None:
            self.received = "a signal to another process"
        return asked
