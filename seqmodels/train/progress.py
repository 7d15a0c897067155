"""What the terminal shows while training: one live line, or plain lines where output is not a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Clock:
    """Time spent on training steps, without evaluation, samples and checkpoints."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._spent = 0.0
        self._running = True

    @property
    def seconds(self) -> float:
        """Since the start, pauses left out."""
        return self._spent + (time.perf_counter() - self._since if self._running else 0.0)

    def __enter__(self) -> None:
        """Pause."""
        self._spent, self._running = self.seconds, False

    def __exit__(self, *error: object) -> None:
        self._since, self._running = time.perf_counter(), True


def duration(seconds: float) -> str:
    """``75`` -> ``"1:15"``, ``3675`` -> ``"1:01:15"``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def rate(per_second: float) -> str:
    """``12345.6`` -> ``"12.3k"``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if per_second >= size:
            return f"{per_second / size:.1f}{unit}"
    return f"{per_second:.0f}"


class Progress:
    """Shows step, loss, tokens/s and the time that is left. Only the first process of a run shows anything."""

    def __init__(self, total: int, every: int, shown: bool = True, out: TextIO | None = None) -> None:
        self.total = total
        self.every = every
        self.shown = shown
        self.out = sys.stdout if out is None else out
        self.live = self.out.isatty()
        self._drawn = 0.0
        self._width = 0

    def update(self, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Show that `step` is done: at once on a terminal, every `every` steps elsewhere."""
        if not self.shown:
            return
        now = time.perf_counter()
        if self.live and now - self._drawn < 0.1 and step < self.total:
            return
        if not self.live and step % self.every and step != self.total:
            return
        self._drawn = now
        speed = f"{rate(tokens_per_second)} tokens/s  ETA {duration(seconds_left)}"
        line = f"step {step}/{self.total}  loss {loss:.4f}  {speed}"
        if not self.live:
            self.say(line)
            return
        self.out.write("\r" + line.ljust(self._width))
        self.out.flush()
        self._width = len(line)

    def say(self, text: str) -> None:
        """Print `text` on lines of its own."""
        if not self.shown:
            return
        if self._width:
            self.out.write("\r" + " " * self._width + "\r")
            self._width = 0
        self.out.write(text + "\n")
        self.out.flush()
