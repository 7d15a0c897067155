"""Metrics of every step, fetched one step late so that the device never waits for the host."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from seqmodels.train.metrics import MetricLog, flatten
from seqmodels.train.progress import Clock, Progress
from seqmodels.train.session import Session


class Halted(Exception):
    """Step `step` had a loss or gradient that is not finite."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Meter:
    """Turns what steps return into log lines and progress."""

    def __init__(self, session: Session, log: MetricLog, progress: Progress) -> None:
        self.clock = Clock()
        self.latest: dict[str, float] = {}
        self._session = session
        self._log = log
        self._progress = progress
        length = session.experiment.data.seq_len
        self._flops_per_token = 3 * session.experiment.model.flops_per_token(length)
        self._peak = session.peak_flops
        self._pending: tuple[int, Any] | None = None
        self._mark: tuple[int, float] | None = None  # step and time from which speed is measured
        self._speed = 0.0  # tokens per second

    def push(self, step: int, metrics: Any) -> None:
        """Take the metrics of `step`, which may still be computed, and report those of the step before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Report what is pending.

        Raises:
          Halted: its loss or gradient was not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        metrics = jax.device_get(metrics)
        if np.any(metrics["halted"]):
            raise Halted(step)
        experiment = self._session.experiment
        self._measure_speed(step)
        self.latest = flatten(metrics, experiment.data.slice_names)
        self.latest |= {"tokens_per_second": self._speed, "mfu": self._speed * self._flops_per_token / self._peak}
        if step % experiment.log.every == 0:
            self._log.write(step, self.latest)
            self._mark = (step, self.clock.seconds)
        left = (experiment.train.steps - step) * self._session.tokens_per_step / self._speed if self._speed else 0.0
        self._progress.update(step, self.latest["loss"], self._speed, left)

    def _measure_speed(self, step: int) -> None:
        """Since the last log line; the first step, which compiles, does not count."""
        now = self.clock.seconds
        if self._mark is None:
            self._mark = (step, now)
            return
        steps, seconds = step - self._mark[0], now - self._mark[1]
        if steps > 0 and seconds > 0:
            self._speed = steps * self._session.tokens_per_step / seconds
