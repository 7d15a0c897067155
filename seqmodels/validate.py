"""What must hold between the fields of an experiment, checked before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from seqmodels.config import check_types
from seqmodels.errors import UserError
from seqmodels.sharding import Partitioner, make_mesh

if TYPE_CHECKING:
    from seqmodels.models.lm import LMConfig
    from seqmodels.train.experiment import Experiment


def validate(experiment: Experiment) -> None:
    """Check that an experiment can run on the devices of this process's JAX.

    Raises:
      UserError: names the field, its value and the fix.
    """
    check_types(experiment)
    check_model(experiment.model)
    check_vocabulary(experiment)
    check_schedule(experiment)
    check_mesh(experiment)


def check_model(model: LMConfig) -> None:
    """Build every kind of block, and trace the whole model once without allocating it."""
    for i, block in enumerate(model.pattern):
        try:
            block.make_mixer(model.dim)
        except ValueError as error:
            raise UserError(f"model.pattern.{i}.mixer with model.dim={model.dim}: {error}") from None
    try:
        jax.eval_shape(model.make().init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def check_vocabulary(experiment: Experiment) -> None:
    """The model must have a row for every token of the data."""
    needed, rows = experiment.data.vocab_size, experiment.model.vocab_size
    if rows < needed:
        kind = type(experiment.data).__name__
        raise UserError(
            f"model.vocab_size={rows} is smaller than the {needed} tokens of {kind}; "
            f"set --model.vocab-size {-(-needed // 8) * 8}"
        )


def check_schedule(experiment: Experiment) -> None:
    """The warm-up must end, and a profiler trace begin, before the training ends."""
    steps, warmup, profile_at = experiment.train.steps, experiment.optim.warmup_steps, experiment.log.profile_at
    if warmup >= steps:
        raise UserError(
            f"optim.warmup_steps={warmup} must be below train.steps={steps}; set --optim.warmup-steps {steps // 10}"
        )
    if profile_at > steps:
        raise UserError(
            f"log.profile_at={profile_at} must be at most train.steps={steps}; set --log.profile-at {-(-steps // 2)}"
        )


def check_mesh(experiment: Experiment) -> None:
    """The devices must be there, and divide the batch and the sequence."""
    partitioner = Partitioner(make_mesh(experiment.mesh), experiment.mesh.rules)
    train, length = experiment.train, experiment.data.seq_len
    tokens: Any = jax.ShapeDtypeStruct((train.batch_size, length), jnp.int32)
    partitioner.batch({"tokens": tokens}, train.accumulate)
