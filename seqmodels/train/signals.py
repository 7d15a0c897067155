"""SIGTERM and SIGINT ask the loop to save and stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import jax
import numpy as np


class StopRequest:
    """Inside this context the first SIGTERM or SIGINT is only noted; a second SIGINT interrupts as usual.

    A signal that nobody has agreed to by the end of the context comes again then, with its usual effect.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.heeded = False
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
        if self.received and not self.heeded and error is None:
            signal.raise_signal(signal.Signals[self.received])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop after `step`. Processes ask each other every so many steps, so that all stop at one."""
        if jax.process_count() == 1:
            self.heeded = self.received is not None
            return self.heeded
        if step % every:
            return False
        from jax.experimental import multihost_utils

        asked = bool(np.any(multihost_utils.process_allgather(np.int32(self.received is not None))))
        if asked and self.received is None:
            self.received = "a signal to another process"
        self.heeded = asked
        return asked
