"""What must hold between the fields of an experiment, checked before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from seqmodels.config import check_types
from seqmodels.data.classification import Classification
from seqmodels.errors import UserError
from seqmodels.models.classifier import ClassifierConfig
from seqmodels.sharding import Partitioner, make_mesh

if TYPE_CHECKING:
    from seqmodels.data.base import Dataset
    from seqmodels.models import ModelConfig
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


def check_model(model: ModelConfig) -> None:
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
    """The model must have a row for every token of the data; a classifier, an output for every label."""
    model, kind = experiment.model, type(experiment.data).__name__
    needed = experiment.data.vocab_size
    if model.vocab_size is not None and model.vocab_size < needed:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the {needed} tokens of {kind}; "
            f"set --model.vocab-size {-(-needed // 8) * 8}"
        )
    if isinstance(model, ClassifierConfig):
        check_labels(model, experiment.data)


def check_labels(model: ClassifierConfig, data: Dataset) -> None:
    """The data must have labels, and the classifier an output for each."""
    kind = type(data).__name__
    if not isinstance(data, Classification):
        raise UserError(f"model is a ClassifierConfig, but {kind} has no labels; use an LMConfig or data with labels")
    if model.num_classes < data.num_classes:
        raise UserError(
            f"model.num_classes={model.num_classes} is smaller than the {data.num_classes} labels of {kind}; "
            f"set --model.num-classes {data.num_classes}"
        )
    if model.vocab_size is None and model.levels < data.vocab_size:
        raise UserError(
            f"model.levels={model.levels} is smaller than the {data.vocab_size} tokens of {kind}; "
            f"set --model.levels {data.vocab_size}"
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
