"""Named problems of an op, shared by its tests and its benchmark.

Every op folder has a ``cases.py`` with ``CASES: tuple[Case, ...]``, where `Case` is the op's own subclass: a frozen
dataclass that adds the shape as fields. `discover` finds them all, so a new op needs no registration anywhere. The op's
``__init__.py`` holds the public function, named like the folder, and its ``IMPLEMENTATIONS`` (see `ops.dispatch`).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.dispatch import Implementation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A named problem. Subclasses add the shape and define the three methods."""

    name: str
    large: bool = False  # a headline size for benchmarks, too slow for tests

    def make(self, key: Array, dtype: Any = jnp.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the public function, without ``impl``.

        The gradient is taken with respect to every floating-point positional argument. Keywords are arrays
        (``segment_ids``, ``state``) or static options. Floating-point inputs have dtype `dtype`, except those that the
        op wants in float32 (states, log-decays).
        """
        raise NotImplementedError(f"{type(self).__name__} must define make(key, dtype)")

    def flops(self) -> float:
        """FLOPs of one forward pass of the chunked form, multiply-adds counted twice; leading terms are enough."""
        raise NotImplementedError(f"{type(self).__name__} must define flops()")

    def bytes(self, dtype: Any = jnp.float32) -> float:
        """The least bytes that one forward pass must move: every input read once, every output written once."""
        raise NotImplementedError(f"{type(self).__name__} must define bytes(dtype)")


class Op(NamedTuple):
    """What the benchmark and the contract tests know of an op."""

    name: str
    run: Callable[..., Any]
    implementations: Mapping[str, Implementation]
    cases: tuple[Case, ...]


def load(name: str) -> Op:
    """The op that lives in ``seqmodels/ops/<name>``."""
    module: ModuleType = importlib.import_module(f"seqmodels.ops.{name}")
    cases = importlib.import_module(f"seqmodels.ops.{name}.cases").CASES
    return Op(name, getattr(module, name), module.IMPLEMENTATIONS, cases)


def discover() -> list[str]:
    """Names of the ops that have cases, sorted."""
    package = importlib.import_module("seqmodels.ops")
    folders = [found.name for found in pkgutil.iter_modules(package.__path__) if found.ispkg]
    return sorted(name for name in folders if importlib.util.find_spec(f"seqmodels.ops.{name}.cases"))
