"""Choosing implementations: refusals are explained, explicit names never fall back, kernels follow the platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from seqmodels import ops
from seqmodels.ops import dispatch
from seqmodels.ops.dispatch import Implementation
from seqmodels.ops.partition import Dims


def implementations(**refusals):
    """Implementations that multiply by 1, 2, 3, and refuse as told."""
    return {
        name: Implementation(lambda x, factor=factor: x * factor, lambda x, name=name: refusals.get(name))
        for factor, name in enumerate(("reference", "chunked", "pallas_tpu"), 1)
    }


def call(impl, **refusals):
    return float(dispatch.dispatch("op", impl, implementations(**refusals), jnp.ones(())))


def test_auto_takes_the_first_that_serves():
    assert call("auto") == 2
    assert call("auto", chunked="no") == 1


def test_an_explicit_name_never_falls_back():
    with pytest.raises(ValueError, match="'chunked' refuses this call: too long; use impl='auto'"):
        call("chunked", chunked="too long")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'chunked'"):
        call("chunkd")


def test_arrays_may_be_those_of_numpy():
    """States too, which chunked forms index as JAX's arrays."""
    q = np.ones((2, 3, 1, 4), np.float32)
    state, ids = np.zeros((2, 2, 1, 4, 4), np.float32), np.array([[1, 2, 1], [2, 2, 0]])
    for op in (ops.linear_attention, functools.partial(ops.delta_rule, beta=np.ones((2, 3, 1), np.float32))):
        out, _ = op(q, q, q, state=state, segment_ids=ids, num_segments=2, chunk_size=2)
        expected, _ = op(*[jnp.asarray(q)] * 3, segment_ids=ids, num_segments=2, impl="reference")
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_all_refusals_are_told():
    with pytest.raises(ValueError, match="chunked: a; reference: b"):
        call("auto", chunked="a", reference="b")


def test_kernels_are_chosen_for_the_platform_of_the_lowering():
    run = jax.jit(lambda x: dispatch.dispatch("op", "auto", implementations(), x))
    text = {p: run.trace(jnp.ones(())).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
    assert "3.0" in text["tpu"] or "3.000000e+00" in text["tpu"]
    assert "3.000000e+00" not in text["cpu"]


def test_interpreted_kernels_can_be_what_auto_takes():
    with dispatch.interpret_kernels():
        assert call("auto") == 2
    with dispatch.interpret_kernels("pallas_tpu"):
        assert call("auto") == 3
        assert call("auto", pallas_tpu="too wide") == 2


def test_a_kernel_of_unknown_axes_refuses_a_mesh_that_the_compiler_partitions_but_runs_inside_shard_map():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    kernel = functools.partial(dispatch.dispatch, "op", "pallas_tpu", implementations())
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match=r"mesh axes \('data',\)"):
            kernel(jnp.ones(4))
        spec = PartitionSpec("data")
        assert jax.jit(jax.shard_map(kernel, in_specs=spec, out_specs=spec))(jnp.ones(4)).tolist() == [3.0] * 4
        assert jax.jit(functools.partial(kernel, dims=Dims(("B",), "B")))(jnp.ones(4)).tolist() == [3.0] * 4
