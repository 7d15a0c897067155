"""Compile a training step for TPUs that are not there: does it compile, does it fit, what do its devices send?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from seqmodels.collectives import collectives, report
from seqmodels.errors import UserError
from seqmodels.train.experiment import Experiment
from seqmodels.train.session import Session, build


def tpu_topology(name: str) -> list[Any]:
    """The devices of a TPU slice such as ``v5e:16x16``, to compile for.

    Raises:
      UserError: libtpu is not installed, or knows no such slice.
    """
    # libtpu would ask a metadata server that only TPU machines have, and lets one process in.
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(variable, "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # its type depends on the plugin
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(
            f"topology {name!r} is not known ({reason}); install jax[tpu], and give one such as v5e:2x2 or v4:2x2x2"
        ) from error


def compile_step(experiment: Experiment, topology: str) -> tuple[Session, Any]:
    """The parts of `experiment` on the mesh of `topology`, and its compiled training step. Allocates nothing.

    Raises:
      UserError: the topology is not known, or the mesh or the batch does not fit it.
    """
    session = build(experiment, tpu_topology(topology))
    with session.partitioner.activate(), _no_compilation_cache():
        return session, session.step.lower(session.placed.abstract, session.batch).compile()


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Its entries for another machine cannot be read back."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def compile_report(experiment: Experiment, topology: str) -> str:
    """A line on the compiled step: bytes per device, calls of kernels, collectives."""
    session, compiled = compile_step(experiment, topology)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    sizes = {
        "state and batch": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    held = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in sizes.items())
    kernels = text.count("tpu_custom_call")
    return (
        f"{experiment.name}: the training step compiles for {session.partitioner.mesh.size} devices of {topology}; "
        f"each holds {held}; {kernels} calls of kernels; {report(collectives(compiled))}"
    )
