"""Text that the model writes while it trains."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqmodels.data.base import Dataset
from seqmodels.generate import generate_text
from seqmodels.models import LanguageModel, Model
from seqmodels.sampling import SamplingConfig
from seqmodels.train.experiment import TrainConfig


def sample_text(model: Model, params: Any, data: Dataset, cfg: TrainConfig, seed: int) -> str | None:
    """Prompt and continuation, or ``None`` when tokens are not text or the model is a classifier.

    All processes must make this call.
    """
    tokenizer = data.tokenizer
    if tokenizer is None or not isinstance(model, LanguageModel):
        return None
    prompt = cfg.sample_prompt or ("" if tokenizer.bos_id is not None else "\n")
    made = generate_text(
        model,
        params,
        tokenizer,
        [prompt],
        max_new_tokens=cfg.sample_tokens,
        sampling=SamplingConfig(cfg.sample_temperature),
        seed=seed,
    )
    return prompt + made[0]


def seed_of(rng: Any, step: int) -> int:
    """A seed for the samples at `step`, from the key data in the state."""
    key = jax.random.wrap_key_data(jnp.asarray(np.asarray(rng)))
    return int(jax.random.bits(jax.random.fold_in(key, step)) >> 1)
