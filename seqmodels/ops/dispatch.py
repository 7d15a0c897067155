"""Choose an implementation of an op, and explain every refusal.

An op hands `dispatch` its implementations; each has ``supports(*args, **kwargs)``, which returns ``None`` or the reason
why it cannot serve the call. ``impl="auto"`` takes, for the platform that the program is *lowered* for, the first of
kernel, chunked, reference that serves. An explicit name never falls back: it raises the reason.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType

from seqmodels.errors import suggest

logger = logging.getLogger("seqmodels.ops")

KERNELS = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}  # lowering platform -> implementation that only it can run
FALLBACKS = ("chunked", "reference")

_interpret = contextvars.ContextVar("seqmodels_interpret_kernels", default=False)


class Implementation(NamedTuple):
    """One way to compute an op: the function, and the reason (or ``None``) for refusing a call."""

    run: Callable[..., Any]
    supports: Callable[..., str | None] = lambda *args, **kwargs: None


@contextlib.contextmanager
def interpret_kernels() -> Iterator[None]:
    """Run Pallas implementations in interpret mode inside this block, on any machine."""
    token = _interpret.set(True)
    try:
        yield
    finally:
        _interpret.reset(token)


def interpreting() -> bool:
    """Whether kernels are to be interpreted (see `interpret_kernels`)."""
    return _interpret.get()


def dispatch(op: str, impl: str, implementations: Mapping[str, Implementation], *args: Any, **kwargs: Any) -> Any:
    """Run `op` with the implementation that `impl` names, or with the best one per platform for ``"auto"``.

    Args:
      op: the op's name, for messages.
      impl: ``"auto"`` or a key of `implementations`.
      implementations: by name; kernels are named as in `KERNELS`.
      *args: arrays (or ``None``), passed on.
      **kwargs: static options, passed on.

    Raises:
      ValueError: unknown `impl`, or the named implementation refuses the call.
    """
    if impl != "auto":
        if impl not in implementations:
            known = ", ".join(["auto", *implementations])
            raise ValueError(f"{op}: impl={impl!r} is unknown, expected one of {known}{suggest(impl, implementations)}")
        reason = _refusal(impl, implementations[impl], args, kwargs)
        if reason:
            raise ValueError(f"{op}: impl={impl!r} refuses this call: {reason}; use impl='auto'")
        return implementations[impl].run(*args, **kwargs)

    default = _first(op, FALLBACKS, implementations, args, kwargs)
    special = {}
    for platform, kernel in KERNELS.items():
        if kernel in implementations:
            chosen = _first(op, (kernel, *FALLBACKS), implementations, args, kwargs)
            if chosen != default:
                special[platform] = functools.partial(implementations[chosen].run, **kwargs)
    _log_once(op, default, tuple(f"{p}:{KERNELS[p]}" for p in special))
    run = functools.partial(implementations[default].run, **kwargs)
    return jax.lax.platform_dependent(*args, default=run, **special) if special else run(*args)


def _first(op: str, names, implementations, args, kwargs) -> str:
    refusals = []
    for name in names:
        if name not in implementations:
            continue
        reason = _refusal(name, implementations[name], args, kwargs)
        if reason is None:
            return name
        refusals.append(f"{name}: {reason}")
        logger.debug("%s: %s refused: %s", op, name, reason)
    raise ValueError(f"{op}: no implementation serves this call: {'; '.join(refusals)}")


def _refusal(name: str, implementation: Implementation, args, kwargs) -> str | None:
    if name in KERNELS.values() and not interpreting():
        axes = partitioned_axes()
        if axes:
            return f"the compiler splits the program over mesh axes {axes}, and a kernel must run inside jax.shard_map"
    return implementation.supports(*args, **kwargs)


def partitioned_axes() -> tuple[str, ...]:
    """Axes of the mesh in force (`jax.set_mesh`) over which the compiler, not a `jax.shard_map`, splits the program."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind != AxisType.Manual and mesh.shape[name] > 1)


@functools.cache
def _log_once(op: str, default: str, special: tuple[str, ...]) -> None:
    logger.info("%s: impl=auto chose %s%s", op, default, f" ({', '.join(special)})" if special else "")
