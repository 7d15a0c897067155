"""Mixer parameters under the names and layouts that PyTorch code bases use.

A linear layer's ``weight [out,in]`` is our ``kernel [in,out]``, a depthwise convolution's ``weight [D,1,W]`` our
``kernel [W,D]``, a norm's ``weight`` our ``scale``; a low-rank ``nn.Sequential`` (``0``, ``1``) is ``down`` and ``up``.
Vectors that stand on their own (``A_log``, ``dt_bias``, ``D``) keep name and shape. Everything works on plain nested
dicts of arrays, so gradients convert as parameters do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MODULES = {
    "0": "down",
    "1": "up",
    "g_norm_swish_gate": "o_norm",  # flash-linear-attention: RetNet, GLA
    "g_norm": "o_norm",  # flash-linear-attention: HGRN, HGRN2
}
"""Torch module names that differ from ours; all others are equal."""

LISTS = ("k_proj", "v_proj", "b_proj", "a_proj")
"""Modules of which a mixture of memories has a list, ``k_proj.0``, ``k_proj.1`` …; ours is one stacked array."""


def to_ours(name: str, array: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The path in our parameter tree, and the array in our layout, of the torch parameter `name`."""
    *modules, last = name.split(".")
    path = tuple(MODULES.get(module, module) for module in modules)
    if last != "weight":
        return (*path, last), array
    if array.ndim == 1:
        return (*path, "scale"), array
    if array.ndim == 3:
        return (*path, "kernel"), array[:, 0].T
    return (*path, "kernel"), array.T


def member(name: str) -> tuple[str, int | None]:
    """The torch parameter `name` without its number in one of the `LISTS`, and that number."""
    *modules, last = name.split(".")
    if len(modules) > 1 and modules[-1].isdigit() and modules[-2] in LISTS:
        return ".".join([*modules[:-1], last]), int(modules[-1])
    return name, None


def tree(parameters: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our nested parameter tree from a flat torch state dict.

    Raises:
      ValueError: two torch parameters claim the same place, or a list has gaps.
    """
    nested: dict[str, Any] = {}
    lists: dict[str, dict[int, np.ndarray]] = {}
    placed = []
    for name, array in parameters.items():
        whole, number = member(name)
        if number is None:
            placed.append((name, *to_ours(name, array)))
        else:
            lists.setdefault(whole, {})[number] = to_ours(whole, array)[1]
    for whole, members in lists.items():
        if sorted(members) != list(range(len(members))):
            raise ValueError(f"torch list {whole!r} has members {sorted(members)}; expected 0 to {len(members) - 1}")
        path = to_ours(whole, members[0])[0]
        placed.append((whole, path, np.stack([members[i] for i in range(len(members))])))
    for name, path, value in placed:
        level = nested
        for module in path[:-1]:
            level = level.setdefault(module, {})
        if path[-1] in level:
            raise ValueError(f"torch parameter {name!r} maps to {'/'.join(path)!r}, which is taken; check the names")
        level[path[-1]] = value
    return nested
