"""Choose an implementation of an op, and explain every refusal.

An op hands `dispatch` its implementations; each has ``supports(*args, **kwargs)``, which returns ``None`` or the reason
why it cannot serve the call. ``impl="auto"`` takes, for the platform that the program is *lowered* for, the first of
kernel, chunked, reference that serves. An explicit name never falls back: it raises the reason. On a mesh the op runs
inside `jax.shard_map`, see `partition`. Kernels of platforms that this installation has no compiler for are not traced.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.errors import suggest
from seqmodels.ops import partition
from seqmodels.ops.partition import Dims

logger = logging.getLogger("seqmodels.ops")

KERNELS = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}  # lowering platform -> implementation that only it can run
FALLBACKS = ("chunked", "reference")


class Interpretation(NamedTuple):
    """How `interpret_kernels` has kernels run."""

    auto: tuple[str, ...]
    races: bool


_interpret: contextvars.ContextVar[Interpretation | None] = contextvars.ContextVar("seqmodels_interpret", default=None)


class Implementation(NamedTuple):
    """One way to compute an op: the function, and the reason (or ``None``) for refusing a call."""

    run: Callable[..., Any]
    supports: Callable[..., str | None] = lambda *args, **kwargs: None


@contextlib.contextmanager
def interpret_kernels(*auto: str, races: bool = False) -> Iterator[None]:
    """Run Pallas implementations in interpret mode inside this block, on any machine.

    Args:
      *auto: implementations that ``impl="auto"`` takes before all others, wherever they serve.
      races: run TPU kernels in the simulator that looks for data races and fills memory with NaN (it allows no remat
        around the kernel), instead of as a loop in XLA.
    """
    token = _interpret.set(Interpretation(auto, races))
    try:
        yield
    finally:
        _interpret.reset(token)


def interpretation() -> Interpretation | None:
    """How kernels are to be interpreted, ``None`` if they are not."""
    return _interpret.get()


def dispatch(
    op: str,
    impl: str,
    implementations: Mapping[str, Implementation],
    *args: Any,
    dims: Dims | None = None,
    **kwargs: Any,
) -> Any:
    """Run `op` with the implementation that `impl` names, or with the best one per platform for ``"auto"``.

    Args:
      op: the op's name, for messages.
      impl: ``"auto"`` or a key of `implementations`.
      implementations: by name; kernels are named as in `KERNELS`.
      *args: arrays (or ``None``), passed on.
      dims: axes of `args` and of the results, by which a mesh that the compiler partitions shares the call out
        (`partition`). A kernel needs them there.
      **kwargs: static options, passed on.

    Raises:
      ValueError: unknown `impl`, or the named implementation refuses the call.
    """
    args = jax.tree.map(jnp.asarray, args)  # NumPy's arrays have no `.at`
    serve = functools.partial(_serve, implementations, dims, args, kwargs)
    if impl != "auto":
        if impl not in implementations:
            known = ", ".join(["auto", *implementations])
            raise ValueError(
                f"{op}: impl={impl!r} is unknown, expected one of {known}{suggest(str(impl), implementations)}"
            )
        run = serve(impl)
        if isinstance(run, str):
            raise ValueError(f"{op}: impl={impl!r} refuses this call: {run}; use impl='auto'")
        return run(*args)

    interpreted = _interpret.get()
    forced = interpreted.auto if interpreted else ()
    default, run = _first(op, [name for name in (*forced, *FALLBACKS) if name in implementations], serve)
    if forced:
        return run(*args)
    special = {}
    for platform in compilers():
        kernel = KERNELS[platform]
        found = serve(kernel) if kernel in implementations else "there is none"
        if isinstance(found, str):
            logger.debug("%s: %s refused: %s", op, kernel, found)
        else:
            special[platform] = found
    _log_once(op, default, tuple(f"{p}:{KERNELS[p]}" for p in special))
    return jax.lax.platform_dependent(*args, default=run, **special) if special else run(*args)


@functools.cache
def compilers() -> tuple[str, ...]:
    """The platforms of `KERNELS` that this installation can compile for: JAX has the plugin (for TPUs, libtpu)."""
    plugins = [entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")]
    found = {"tpu": importlib.util.find_spec("libtpu") is not None, "cuda": any("cuda" in name for name in plugins)}
    return tuple(platform for platform in KERNELS if found[platform])


def _first(op: str, names: list[str], serve: Callable[[str], Callable[..., Any] | str]) -> tuple[str, Callable]:
    """The first of `names` that serves, and its function."""
    refusals = []
    for name in names:
        found = serve(name)
        if not isinstance(found, str):
            return name, found
        refusals.append(f"{name}: {found}")
        logger.debug("%s: %s refused: %s", op, name, found)
    raise ValueError(f"{op}: no implementation serves this call: {'; '.join(refusals)}")


def _serve(implementations, dims: Dims | None, args, kwargs, name: str) -> Callable[..., Any] | str:
    """The function of `args` by which an implementation computes the op, or the reason for its refusal."""
    implementation = implementations[name]
    run = functools.partial(implementation.run, **kwargs)
    share = partition.plan(dims, args)
    if name not in KERNELS.values():
        share = partition.WHOLE_CALL if isinstance(share, str) else share.left_to_compiler()
    if isinstance(share, str):
        return share
    return implementation.supports(*share.local(args), **kwargs) or share.wrap(run)


@functools.cache
def _log_once(op: str, default: str, special: tuple[str, ...]) -> None:
    logger.info("%s: impl=auto chose %s%s", op, default, f" ({', '.join(special)})" if special else "")
