"""Which tensor is the first that is not finite."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqmodels.errors import UserError
from seqmodels.models.lm import LanguageModel
from seqmodels.sharding import path_name
from seqmodels.train.step import Batch, Loss, gradients, measure


class TrainingDiverged(UserError):
    """A loss or gradient was not finite. The message names the first bad tensor and the last good checkpoint."""


def first_bad(model: LanguageModel, params: Any, batch: Batch, loss: Loss) -> str:
    """Name of the first tensor that is not finite, in the order in which they arise.

    Parameters by path, inputs, the outputs of modules that run outside of the scan over layers, the model's auxiliary
    outputs, the loss, then gradients by path (for stacked layers: with the layer).
    """
    for kind, find in (("parameter", _parameters), ("input", _inputs), ("activation", _activations)):
        name = _first(find(model, params, batch, loss))
        if name is not None:
            return f"{kind} {name}"
    sums, aux = jax.jit(lambda p, b: measure(model, p, b, loss))(params, batch)
    name = _first({**aux, "loss": sums["loss"]})
    if name is not None:
        return "the loss" if name == "loss" else f"auxiliary output {name}"
    grads, _ = jax.jit(lambda p, b: gradients(model, p, b, loss, 1))(params, batch)
    name = _first(grads)
    return f"gradient {name}" if name is not None else "the gradient norm"


def _parameters(model: LanguageModel, params: Any, batch: Batch, loss: Loss) -> Any:
    return params


def _inputs(model: LanguageModel, params: Any, batch: Batch, loss: Loss) -> Any:
    return batch


def _activations(model: LanguageModel, params: Any, batch: Batch, loss: Loss) -> Any:
    """Outputs of modules by number and path, in the order in which they are computed."""
    names: list[str] = []

    def run(p: Any, b: Batch) -> list[Any]:
        call = {"segment_ids": b["segment_ids"], "method": "hidden"}
        _, seen = model.apply(p, b["tokens"], **call, capture_intermediates=True, mutable="intermediates")
        outputs = list(_in_order(seen["intermediates"], ()))
        names[:] = [name for name, _ in outputs]
        return [value for _, value in outputs]

    values = jax.jit(run)(params, batch)
    return OrderedDict(zip(names, values))


def _in_order(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts as they were inserted, a module's own output (``__call__``) after its parts'."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _in_order(value, (*path, key))
        else:
            yield "/".join(path) or key, value


def _first(tree: Any) -> str | None:
    """Path of the first array in `tree` that is not finite; under ``periods`` with the index of its layer."""
    flags = jax.jit(lambda t: jax.tree.map(_flags, t))(tree)
    for path, flag in jax.tree_util.tree_leaves_with_path(jax.device_get(flags)):
        if not np.all(flag):
            name = path_name(path)
            rows = np.flatnonzero(~np.atleast_1d(flag))
            return f"{name}[{rows[0]}]" if "/periods/" in name else name
    return None


def _flags(leaf: jax.Array) -> jax.Array:
    """Whether all of `leaf` is finite, per entry of its first axis."""
    return jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
