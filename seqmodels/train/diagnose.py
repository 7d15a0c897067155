"""Which tensor is the first that is not finite."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.models import Model
from seqmodels.sharding import path_name, to_host
from seqmodels.train.step import Batch, Loss, gradients, measure

ModulePath = tuple[str, ...]


class TrainingDiverged(UserError):
    """A loss or gradient was not finite. The message names the first bad tensor and the last good checkpoint."""


def first_bad(model: Model, params: Any, batch: Batch, loss: Loss) -> str:
    """Name of the first tensor that is not finite, in the order in which they arise.

    Parameters by path, inputs, the outputs of modules, the model's auxiliary outputs, the loss, then gradients by
    path. A name under ``periods`` ends with the repetition of the pattern: ``periods/block_1/mixer[2]`` is the mixer
    of layer ``2 * len(pattern) + 1``.
    """
    for kind, tree in (("parameter", params), ("input", batch)):
        name = _first(tree)
        if name is not None:
            return f"{kind} {name}"
    name = _first_activation(model, params, batch)
    if name is not None:
        return f"activation {name}"
    sums, aux = jax.jit(lambda p, b: measure(model, p, b, loss))(params, batch)
    name = _first({**aux, "loss": sums["loss"]})
    if name is not None:
        return "the loss" if name == "loss" else f"auxiliary output {name}"
    grads, _ = jax.jit(lambda p, b: gradients(model, p, b, loss, 1))(params, batch)
    name = _first(grads)
    return f"gradient {name}" if name is not None else "the gradient norm"


def _first_activation(model: Model, params: Any, batch: Batch) -> str | None:
    """The module whose output is the first that is not finite; inside the scan over layers one flag each is kept."""
    order: list[ModulePath] = []

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out, module = call(*args, **kwargs), context.module
        if context.method_name == "__call__":
            if module.path not in order:
                order.append(module.path)
            module.sow("intermediates", "finite", _finite(out), reduce_fn=jnp.logical_and, init_fn=lambda: True)
        return out

    def run(p: Any, b: Batch) -> Any:
        call: dict[str, Any] = {"segment_ids": b["segment_ids"], "method": "hidden", "mutable": "intermediates"}
        with nn.intercept_methods(note):
            return model.apply(p, b["tokens"], **call)[1]["intermediates"]

    flags = to_host(jax.jit(run)(params, batch))
    bad = [(path, row) for path in order for row in _bad_rows(_at(flags, path)["finite"])]
    scanned = [number for number, path in enumerate(order) if "periods" in path]

    def when(found: tuple[ModulePath, int]) -> tuple[int, int, int]:
        """All that is scanned starts at the same time; then one repetition follows the other."""
        path, row = found
        number = order.index(path)
        return (scanned[0], row, number) if "periods" in path else (number, 0, number)

    if not bad:
        return None
    path, row = min(bad, key=when)
    return _with_row("/".join(path), row)


def _at(tree: Any, path: ModulePath) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _finite(tree: Any) -> Array:
    """Whether all floating-point arrays in `tree` are finite."""
    found = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(found)) if found else jnp.bool_(True)


def _first(tree: Any) -> str | None:
    """Path of the first array in `tree` that is not finite."""
    flags = to_host(jax.jit(lambda t: jax.tree.map(_flags, t))(tree))
    for path, flag in jax.tree_util.tree_leaves_with_path(flags):
        if rows := _bad_rows(flag):
            return _with_row(path_name(path), rows[0])
    return None


def _bad_rows(flag: np.ndarray) -> list[int]:
    """Indices at which `flag`, a scalar or a vector, is False."""
    return np.flatnonzero(~np.atleast_1d(flag)).tolist()


def _flags(leaf: Array) -> Array:
    """Whether all of `leaf` is finite, per entry of its first axis."""
    return jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))


def _with_row(name: str, row: int) -> str:
    """`name`, with the repetition of the pattern if it is scanned."""
    return f"{name}[{row}]" if "/periods" in name else name
