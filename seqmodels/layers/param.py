"""Parameters that carry logical axis names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp

from seqmodels.axes import Array


def param(
    module: nn.Module,
    name: str,
    init: Callable[..., Array],
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: Any = jnp.float32,
) -> Array:
    """Declare parameter `name` of `module`; its dimensions have the logical names `axes` (``None``: never sharded)."""
    return cast(Array, module.param(name, nn.with_logical_partitioning(init, axes), shape, dtype))
