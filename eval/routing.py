"""Where a mixture of memories sends its tokens: shares by layer, memory and class of token, and figures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from seqmodels.axes import Array
from seqmodels.layers.routing import Router
from seqmodels.models.lm import LanguageModel

BYTE_CLASSES = ("letter", "digit", "space", "other")


def choices(model: LanguageModel, params: Any, tokens: Array, segment_ids: Array | None = None) -> dict[int, Array]:
    """The memories ``[B,T,k]`` int32 that every token uses, by layer; layers without a router are absent."""
    output: Any = model.apply(
        params,
        tokens,
        segment_ids=segment_ids,
        method="hidden",
        capture_intermediates=lambda module, name: isinstance(module, Router),
        mutable=["intermediates"],
    )
    stack = output[1].get("intermediates", {"backbone": {"stack": {}}})["backbone"]["stack"]
    period, depth = len(model.cfg.pattern), model.cfg.depth
    found = {}
    for part, first in (("periods", 0), ("tail", depth - depth % period)):
        for name, block in stack.get(part, {}).items():
            ((routing,),) = _routers(block)
            stacked = routing.choice if part == "periods" else routing.choice[None]
            found |= {first + i * period + int(name.split("_")[1]): layer for i, layer in enumerate(stacked)}
    return dict(sorted(found.items()))


def _routers(tree: Mapping[str, Any]) -> list[Any]:
    """The captured outputs below `tree`."""
    calls = [tree["__call__"]] if "__call__" in tree else []
    return calls + [call for name, below in tree.items() if name != "__call__" for call in _routers(below)]


def shares(choice: Array, num_memories: int, classes: Array | None = None, num_classes: int = 1) -> np.ndarray:
    """How the tokens of every class spread over the memories: ``[num_classes,M]``, rows sum to 1 (0 for no token).

    Args:
      choice: ``[B,T,k]``.
      num_memories: M.
      classes: ``[B,T]`` in ``0 .. num_classes-1``, other values are left out; ``None``: one class of all tokens.
      num_classes: rows of the result.
    """
    chosen = np.eye(num_memories)[np.asarray(choice)].sum(axis=2)  # [B,T,M]
    of = np.zeros(chosen.shape[:2], np.int32) if classes is None else np.asarray(classes)
    counts = np.stack([chosen[of == c].sum(axis=0) for c in range(num_classes)])
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def byte_classes(tokens: Array) -> np.ndarray:
    """The class of bytes, an index of `BYTE_CLASSES`; -1 for special tokens above 255."""
    table = np.full(256, BYTE_CLASSES.index("other"), np.int32)
    for byte in range(256):
        kinds = (chr(byte).isalpha() or byte == ord("_") or byte > 127, chr(byte).isdigit(), chr(byte).isspace())
        if any(kinds):
            table[byte] = kinds.index(True)
    ids = np.asarray(tokens)
    return np.where(ids < 256, table[np.minimum(ids, 255)], -1)


def plot_history(steps: Sequence[int], history: Mapping[str, np.ndarray]) -> Figure:
    """The share of every memory through training: one panel per named run ``[len(steps),M]``."""
    figure = Figure(figsize=(4.5 * len(history), 3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(history), sharey=True))
    for axes, (name, values) in zip(panels, history.items(), strict=True):
        for m, line in enumerate(np.asarray(values).T):
            axes.plot(steps, line, label=f"memory {m}")
        axes.axhline(1 / values.shape[1], color="black", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="step", ylim=(0, None))
    panels[0].set_ylabel("share of choices")
    panels[-1].legend()
    return figure


def plot_classes(by_layer: Mapping[int, np.ndarray], class_names: Sequence[str]) -> Figure:
    """Shares ``[classes,M]`` of every layer as a table of shades."""
    figure = Figure(figsize=(3.5 * len(by_layer), 2.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(by_layer), sharey=True))
    highest = max(float(values.max()) for values in by_layer.values())
    for axes, (layer, values) in zip(panels, by_layer.items(), strict=True):
        axes.imshow(values, vmin=0, vmax=highest, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < highest / 2 else "black"
            )
        axes.set(title=f"layer {layer}", xlabel="memory", xticks=range(values.shape[1]))
        axes.set_yticks(range(len(class_names)), class_names)
    return figure
