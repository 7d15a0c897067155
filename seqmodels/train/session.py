"""What an experiment needs to run: model, mesh, jitted steps and data, built once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from seqmodels.data.base import DataIterator, Shard
from seqmodels.models import Model
from seqmodels.sharding import Partitioner, make_mesh, rows_of_process
from seqmodels.train.experiment import Experiment
from seqmodels.train.flops import peak_flops
from seqmodels.train.optim import make_optimiser, make_schedule
from seqmodels.train.state import Placed, place_state
from seqmodels.train.step import Batch, Metrics, TrainState, make_eval_step, make_step


class Session(NamedTuple):
    """The parts of a run that do not change."""

    experiment: Experiment
    model: Model
    partitioner: Partitioner
    optimiser: optax.GradientTransformation
    placed: Placed
    batch: dict[str, jax.ShapeDtypeStruct]  # a global one
    batch_shardings: dict[str, Any]
    shard: Shard  # of the data: this process's rows
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]  # jitted, donates the state
    eval_step: Callable[[Any, Batch], Metrics]  # jitted
    peak_flops: float  # of all devices of the mesh

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the global batch."""
        return self.experiment.train.batch_size * self.experiment.data.seq_len

    def batches(self, split: str) -> DataIterator:
        """This process's part of every global batch of a split, without end."""
        train = self.experiment.train
        return self.experiment.data.make(
            split, batch_size=train.batch_size // self.shard.count, seed=train.seed, shard=self.shard, repeat=True
        )


def build(experiment: Experiment, devices: Sequence[Any] | None = None) -> Session:
    """Make the parts of `experiment` on `devices` (default: all); allocates nothing on them.

    Raises:
      UserError: the mesh does not fit the devices, or the batch does not fit the mesh.
    """
    train, data = experiment.train, experiment.data
    model = experiment.model.make()
    partitioner = Partitioner(make_mesh(experiment.mesh, devices), experiment.mesh.rules)
    row = next(data.make("train", batch_size=1, seed=train.seed))
    batch = {k: jax.ShapeDtypeStruct((train.batch_size, *v.shape[1:]), v.dtype) for k, v in row.items()}
    shardings = partitioner.batch(batch, train.accumulate)
    shard = Shard(*rows_of_process(partitioner, train.batch_size))

    optimiser = make_optimiser(experiment.optim, train.steps)
    schedule = make_schedule(experiment.optim, train.steps)
    placed = place_state(model, optimiser, partitioner)
    slices = len(data.slice_names)
    step = jax.jit(
        make_step(model, optimiser, train, schedule, slices),
        donate_argnums=0,
        in_shardings=(placed.shardings, shardings),
        out_shardings=(placed.shardings, partitioner.replicated),
    )
    eval_step = jax.jit(
        make_eval_step(model, train.accumulate, slices),
        in_shardings=(placed.shardings.params, shardings),
        out_shardings=partitioner.replicated,
    )
    peak = peak_flops(list(partitioner.mesh.devices.flat))
    return Session(experiment, model, partitioner, optimiser, placed, batch, shardings, shard, step, eval_step, peak)
