"""What tests of kernels share: ahead-of-time compilation for real TPUs, and interpretation with race detection.

Compilation needs libtpu but no TPU; it proves that Mosaic accepts a kernel and shows its memory, never its speed.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental import topologies

from seqmodels.ops import dispatch
from tests.shared import relative_error

CHIPS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@functools.cache
def devices(chip):
    """Four devices of a chip that is not there."""
    return topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip]).devices


def compile_for(chip, f, args, donate=()):
    """`f` compiled for one device of `chip`; `args` is a dict of ``ShapeDtypeStruct``, `donate` names some of them."""
    sharding = jax.sharding.SingleDeviceSharding(devices(chip)[0])
    args = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in args.items()}
    return jax.jit(f, donate_argnames=donate).lower(**args).compile()


def assert_memory(compiled, f, args, states, ratio):
    """Temporaries within 1.5x `states` bytes; HBM bytes within `ratio` of reading inputs and writing outputs once."""
    size = lambda tree: sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    ideal = size(args) + size(jax.eval_shape(f, **args))
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= 1.5 * states, f"{memory.temp_size_in_bytes=} against {states=}"
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert total <= ratio * ideal, f"{total / ideal:.3f} times the bytes of inputs and outputs"


def has_mosaic_call(lowered):
    return "tpu_custom_call" in lowered.as_text()


def quick(f, *args):
    """``f(*args)`` under jit, compiled without optimisation: such programs run once."""
    return jax.block_until_ready(jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})(*args))


def interpreted(f, *args):
    """`quick` with kernels interpreted, and data races looked for."""
    with dispatch.interpret_kernels(races=True):
        return quick(f, *args)


@pytest.fixture
def no_races(monkeypatch):
    """Fails the test if the interpreter saw a race in any kernel, or if it ran none."""
    seen = []

    class Recorded(interpret_pallas_call.RaceDetectionState):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self)

    monkeypatch.setattr(interpret_pallas_call, "RaceDetectionState", Recorded)
    yield
    assert seen, "no kernel was interpreted"
    assert not any(state.races_found for state in seen), "the interpreter found a race"


def with_gradients(f):
    """``(args, cotangents) -> (outputs of f, gradients of all args)``."""

    def run(args, cotangents):
        out, vjp = jax.vjp(f, *args)
        return out, vjp(cotangents)

    return run


def assert_matches_reference(problem, impl="pallas_tpu", tolerance=5e-6):
    """Outputs and all gradients of a `tpu_cases.Problem` in chunks of 16, within the golden vectors' tolerance.

    States of segments without a token come back bit for bit.
    """
    args, cotangents, options = problem.make()
    out, grads = interpreted(problem.run(impl, chunk_size=16, **options), args, cotangents)
    expected, expected_grads = quick(problem.run("reference", **options), args, cotangents)
    for name, actual, wanted in zip(problem.names, (*out, *grads), (*expected, *expected_grads), strict=True):
        assert (actual is None) == (wanted is None), name
        if wanted is not None:
            assert actual.dtype == wanted.dtype, name
            assert relative_error(actual, wanted) <= tolerance, name
    if problem.segments:
        for row, ids in enumerate(options["segment_ids"]):
            for slot in set(range(problem.segments)) - {int(i) - 1 for i in ids}:
                np.testing.assert_array_equal(out[1][row, slot], args[-1][row, slot])


def rms_error(problem, impl="pallas_tpu"):
    """The largest relative root mean square error of outputs and gradients, against the float32 reference."""
    args, cotangents, options = problem.make()
    out, grads = interpreted(problem.run(impl, chunk_size=16, **options), args, cotangents)
    wide = jax.tree.map(lambda x: x.astype(np.float32), (args, cotangents))
    expected, expected_grads = quick(problem.run("reference", **options), *wide)
    assert out[0].dtype == grads[0].dtype == problem.dtype and out[1].dtype == np.float32
    worst = 0.0
    for actual, wanted in zip((*out, *grads), (*expected, *expected_grads), strict=True):
        difference = np.asarray(actual, np.float32) - wanted
        worst = max(worst, float(np.sqrt(np.mean(difference**2) / np.mean(np.square(wanted)))))
    return worst
