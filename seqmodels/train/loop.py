"""The training loop."""

from __future__ import annotations

import collections
import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from seqmodels.config import to_json
from seqmodels.errors import UserError
from seqmodels.sharding import join_processes, to_devices
from seqmodels.train.checkpoint import Checkpointer, sealed_steps
from seqmodels.train.compile_cache import enable_compilation_cache
from seqmodels.train.diagnose import TrainingDiverged, first_bad
from seqmodels.train.evaluate import evaluate, summary
from seqmodels.train.experiment import Experiment
from seqmodels.train.meter import Halted, Meter
from seqmodels.train.metrics import MetricLog, read_metrics, truncate_metrics
from seqmodels.train.plots import plot_loss
from seqmodels.train.profiler import ProfilerWindow
from seqmodels.train.progress import Progress
from seqmodels.train.run_dir import RunDir
from seqmodels.train.samples import sample_text, seed_of
from seqmodels.train.session import Session, build
from seqmodels.train.signals import StopRequest
from seqmodels.train.state import TrainState, create_state
from seqmodels.train.step import Loss
from seqmodels.validate import validate


class FitResult(NamedTuple):
    """What a run came to."""

    step: int  # updates done
    state: TrainState
    metrics: dict[str, float]  # the newest of every metric, training and held-out
    run_dir: Path
    stopped_by: str | None  # the signal that ended the run early


def fit(experiment: Experiment, run_dir: str | os.PathLike[str], *, resume: bool = False) -> FitResult:
    """Train `experiment` in `run_dir`, or go on from its newest whole checkpoint.

    SIGTERM and SIGINT save a checkpoint and return early. A resumed run continues bit for bit as the undisturbed one.

    Raises:
      UserError: the experiment cannot run here, `run_dir` cannot be used, or a file cannot be written.
      TrainingDiverged: a loss or gradient was not finite; no checkpoint was written after it.
    """
    join_processes(experiment.mesh)
    enable_compilation_cache()
    validate(experiment)
    run = RunDir(run_dir)
    run.open(resume)
    session = build(experiment)
    run.require_space(session.placed.abstract)
    with (
        StopRequest() as stop,
        session.partitioner.activate(),
        contextlib.closing(Trainer(session, run, stop)) as trainer,
    ):
        trainer.start(resume)
        return trainer.run()


class Trainer:
    """One run: the state, and everything that looks at it between steps."""

    def __init__(self, session: Session, run: RunDir, stop: StopRequest) -> None:
        experiment = session.experiment
        self.session, self.run_dir, self.stop = session, run, stop
        self.cfg = experiment.train
        self.config = json.loads(to_json(experiment))
        self.progress = Progress(self.cfg.steps, experiment.log.every, shown=jax.process_index() == 0)
        self.checkpoints = Checkpointer(run.checkpoints, experiment.checkpoint)
        self.profiler = ProfilerWindow(run.path, experiment.log)
        self.log = MetricLog(run.path, experiment.log, experiment.name, self.config)
        self.meter = Meter(session, self.log, self.progress)
        self.train = session.batches("train")
        self.valid = session.batches("valid") if self.cfg.eval_every >= 0 else None
        self.valid_start = self.valid.get_state() if self.valid is not None else b""
        self.recent: collections.deque[tuple[int, Any]] = collections.deque(maxlen=2)
        self.held_out: tuple[int, dict[str, float]] = (-1, {})  # of which step

    def start(self, resume: bool) -> None:
        """Make the first state, or restore the newest whole checkpoint; only then write to the run directory."""
        session = self.session
        restored = self.checkpoints.restore(session.placed) if resume else None
        if restored is None:
            self.state, self.step = create_state(session.placed, self.cfg.seed), 0
        else:
            self.state, self.step = restored.state, restored.step
            self.train.set_state(own_position(restored.positions))
        if resume:
            self.progress.say(f"resuming {self.run_dir.path} after step {self.step}")
            if jax.process_index() == 0:
                truncate_metrics(self.run_dir.path, self.step)
        self.run_dir.write_config(to_json(session.experiment))
        self.log.open()

    def close(self) -> None:
        """Release what the run holds, whatever its end."""
        self.profiler.close()
        self.log.close()
        self.checkpoints.close()

    def run(self) -> FitResult:
        """Train to the end, or to the first signal."""
        stopped = False
        if self.step < self.cfg.steps:
            self.progress.say("compiling the training step ...")
        try:
            while self.step < self.cfg.steps and not stopped:
                self.profiler.before(self.step + 1)
                batch = self.load()
                self.state, metrics = self.session.step(self.state, batch)  # loss, gradient, update
                self.step += 1
                self.measure(batch, metrics)
                stopped = self.stop.agreed(self.step, self.session.experiment.log.every)
                self.between_steps(stopped)
            self.meter.flush()
        except Halted as halt:
            raise self.diverged(halt.step) from None
        self.checkpoints.wait()
        return self.finish(stopped)

    def load(self) -> Any:
        """The next global batch on the devices."""
        return to_devices(next(self.train), self.session.batch_shardings)

    def measure(self, batch: Any, metrics: Any) -> None:
        """Hand the metrics of this step over; those of the step before are reported now."""
        self.recent.append((self.step, batch))
        self.meter.push(self.step, metrics)
        self.profiler.after(self.step, metrics)

    def between_steps(self, stopped: bool) -> None:
        """Evaluation, samples and checkpoints that are due."""
        every = self.session.experiment.checkpoint.every
        hooks = [
            (self.due(self.cfg.eval_every), self.evaluate),
            (self.due(self.cfg.sample_every), self.sample),
            (self.due(every) or (stopped and every >= 0), self.save),
        ]
        if not any(due for due, _ in hooks):
            return
        self.meter.flush()
        with self.meter.clock:
            for due, hook in hooks:
                if due:
                    hook()

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end unless `every` is -1, happens now."""
        return (every > 0 and self.step % every == 0) or (every >= 0 and self.step == self.cfg.steps)

    def evaluate(self) -> None:
        """Held-out metrics to the log and the terminal."""
        assert self.valid is not None
        metrics = evaluate(self.session, self.state.params, self.valid, self.valid_start)
        self.held_out = (self.step, metrics)
        self.log.write(self.step, metrics)
        self.progress.say(f"held out at step {self.step}: {summary(metrics)}")

    def sample(self) -> None:
        """A sample to the terminal and to ``samples/STEP.txt``; every process takes part, the first one writes."""
        seed = seed_of(self.state.rng, self.step)
        text = sample_text(self.session.model, self.state.params, self.session.experiment.data, self.cfg, seed)
        if text is None or jax.process_index() != 0:
            return
        self.run_dir.samples.mkdir(exist_ok=True)
        (self.run_dir.samples / f"{self.step}.txt").write_text(text)
        self.progress.say(f"--- sample at step {self.step}\n{text}\n---")

    def save(self) -> None:
        """A checkpoint, ranked by the held-out loss if it was just measured."""
        measured, metrics = self.held_out
        loss = metrics["valid/loss"] if measured == self.step else None
        self.checkpoints.save(self.state, self.step, self.train.get_state(), self.config, loss)

    def diverged(self, step: int) -> TrainingDiverged:
        """The error that names the first bad tensor of `step` and the last good checkpoint."""
        self.checkpoints.wait()
        batch = next(batch for number, batch in self.recent if number == step)
        loss = Loss(self.cfg.label_smoothing, self.cfg.z_loss, accuracy=False)
        bad = first_bad(self.session.model, self.state.params, batch, loss)
        good = sealed_steps(self.run_dir.checkpoints)
        kept = (
            f"the last good checkpoint is {self.run_dir.checkpoints / str(good[-1])}" if good else "no checkpoint yet"
        )
        return TrainingDiverged(
            f"training diverged at step {step}: {bad} is not finite; {kept}; lower --optim.learning-rate"
            f"={self.session.experiment.optim.learning_rate:g} or raise --optim.warmup-steps"
        )

    def finish(self, stopped: bool) -> FitResult:
        """The loss curve, and the last word."""
        metrics: dict[str, float] = {}
        if jax.process_index() == 0:
            for entry in read_metrics(self.run_dir.path):
                metrics |= {name: value for name, value in entry.items() if name != "step"}
            plot_loss(self.run_dir.path)
        if stopped:
            self.progress.say(
                f"stopped by {self.stop.received} after step {self.step} of {self.cfg.steps}; "
                f"add --resume to the same command to go on (run directory {self.run_dir.path})"
            )
        return FitResult(self.step, self.state, metrics, self.run_dir.path, self.stop.received if stopped else None)


def own_position(positions: list[bytes]) -> bytes:
    """The data position of this process; positions of another number of processes must all agree.

    Raises:
      UserError: they do not, because every process had a stream of its own.
    """
    if len(positions) == jax.process_count():
        return positions[jax.process_index()]
    if len(set(positions)) > 1:
        raise UserError(
            f"the checkpoint was written by {len(positions)} processes with data streams of their own, but there are "
            f"{jax.process_count()} now; resume with {len(positions)} processes"
        )
    return positions[0]
