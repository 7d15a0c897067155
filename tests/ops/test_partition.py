"""Kernels on a mesh that the compiler partitions: each device runs them on its share of batch and heads."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from seqmodels import ops
from seqmodels.collectives import collectives
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.ops import dispatch, partition
from seqmodels.ops.partition import Dims
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from tests.ops.tpu_cases import SEGMENTS, runs_of_ids
from tests.ops.tpu_kernels import quick
from tests.shared import relative_error

DIMS = Dims(("B T Hk K", "B T H V", None, "B S H K V"), "B T H V")


@pytest.fixture
def eight():
    """Two by two shares of the batch, two of the heads, in force."""
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    with partitioner.activate():
        yield


def shapes(B=4, Hk=2, H=4, T=16):
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    return of(B, T, Hk, 8), of(B, T, H, 8), None, of(B, 5, H, 8, 8)


def plan(args=None, kind=AxisType.Auto, **axes):
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))
    with jax.sharding.use_abstract_mesh(mesh):
        share = partition.plan(DIMS, args or shapes())
        return share if isinstance(share, str) else share.local(args or shapes())


def test_a_share_is_cut_out_of_batch_and_heads():
    sizes = [None if x is None else x.shape for x in plan(data=2, fsdp=2, tensor=2, expert=2)]
    assert sizes == [(1, 16, 1, 8), (1, 16, 2, 8), None, (1, 5, 2, 8, 8)]
    assert plan(data=1, tensor=1) == shapes()  # nothing to split


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data": 2, "args": shapes(B=3)}, "B=3 does not divide by mesh axes {'data': 2}"),
        ({"data": 2, "fsdp": 4, "args": shapes(B=4)}, "B=4 does not divide by mesh axes {'data': 2, 'fsdp': 4}"),
        ({"tensor": 4}, "Hk=2 does not divide by mesh axes {'tensor': 4}"),
        ({"data": 2, "sequence": 2}, "length is split over mesh axes ('sequence',), and a kernel needs all of it"),
        ({"data": 2, "rows": 2}, "no logical axis rule says what mesh axes ('rows',) split"),
        ({"data": 2, "kind": AxisType.Explicit}, "mesh axes ('data',) are Explicit"),
    ],
    ids=["batch", "both_batch_axes", "heads", "time", "unknown_axis", "explicit"],
)
def test_refusals_say_why(options, reason):
    assert reason in plan(**options)


def test_auto_takes_the_kernel_on_a_mesh_and_the_chunked_form_where_the_batch_does_not_divide(eight):
    def text(B):
        x = jax.ShapeDtypeStruct((B, 32, 2, 16), jnp.float32)
        return jax.jit(ops.linear_attention).trace(x, x, x).lower(lowering_platforms=("tpu",)).as_text()

    assert "tpu_custom_call" in text(4)
    assert "tpu_custom_call" not in text(2)
    x = jnp.ones((2, 8, 2, 16))
    with pytest.raises(ValueError, match="B=2 does not divide by mesh axes"):
        ops.linear_attention(x, x, x, impl="pallas_tpu")


@pytest.mark.parametrize("op", [ops.linear_attention, ops.delta_rule], ids=lambda op: op.__name__)
@pytest.mark.parametrize("packed", [False, True])
def test_the_chunked_form_exchanges_nothing_but_weights(op, packed, eight):
    """Forward and backward with vector decay; the compiler alone would gather the small matrices of all chunks."""
    shape = jax.ShapeDtypeStruct
    tokens = [shape((4, 39, 2, 16), jnp.float32)] * 4 + [shape((4, 39, 2), jnp.float32)]
    place = jax.sharding.NamedSharding(jax.sharding.get_abstract_mesh(), jax.P(("data", "fsdp"), None, "tensor"))
    ids = jnp.asarray(np.tile(runs_of_ids(SEGMENTS), (2, 1))) if packed else None

    def loss(q, k, v, log_decay, beta):
        extra = {"beta": beta} if op is ops.delta_rule else {}
        options = {"segment_ids": ids, "num_segments": 5 if packed else None}
        out, state = op(q, k, v, log_decay=log_decay, **extra, **options, impl="chunked")
        return jnp.sum(out**2) + jnp.sum(state**2)

    jitted = jax.jit(jax.grad(loss, range(5)), in_shardings=(place,) * 5, out_shardings=(place,) * 5)
    assert collectives(jitted.lower(*tokens).compile()) == {}


def test_a_scanned_model_on_eight_devices_is_the_chunked_model_on_one():
    """With remat, two documents per row, and parameters split over all mesh axes."""
    blocks = (BlockConfig(GatedDeltaNetConfig(num_heads=2)),)
    model = LMConfig(vocab_size=19, dim=32, depth=2, pattern=blocks, remat="full").make()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 19, (4, 20)).astype(np.int32)
    ids = np.repeat(np.asarray([[1] * 13 + [2] * 6 + [0]], np.int32), 4, axis=0)
    params = jax.jit(model.init)(jax.random.key(0), tokens)

    def loss(params):
        logits, _, _ = model.apply(params, tokens, segment_ids=ids)
        return jnp.mean(jnp.sin(logits))

    expected = quick(jax.value_and_grad(loss), params)
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    placed = jax.device_put(params, partitioner.parameters(jax.eval_shape(lambda: params)))
    with partitioner.activate(), dispatch.interpret_kernels("pallas_tpu"):
        traced = jax.jit(jax.value_and_grad(loss)).trace(placed)
        actual = quick(jax.value_and_grad(loss), placed)
    calls = str(traced.jaxpr).count("pallas_call")
    assert calls == 3 * 4, "forward, recomputed and backward of the delta rule and three convolutions"
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) <= 1e-5


@pytest.mark.parametrize("case", ["vmap", "fixed_decay", "segments", "second_derivative"])
def test_transformations_on_a_mesh(case, eight):
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    lead = (3,) if case == "vmap" else ()
    q, k, v = (normal(*lead, 4, 39, heads, 8) for heads in (2, 2, 4))
    g = -np.exp(normal(4) if case == "fixed_decay" else normal(*lead, 4, 39, 4))
    options = {}
    if case == "segments":
        options = {"segment_ids": np.tile(runs_of_ids(SEGMENTS), (2, 1)), "num_segments": 5}

    def loss(impl, *args):
        run = functools.partial(ops.linear_attention, impl=impl, chunk_size=16, **options)
        out, state = (jax.vmap(run) if case == "vmap" else run)(*args)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(state))

    def result(impl, *args):
        gradients = jax.grad(functools.partial(loss, impl), (0, 1, 2, 3))
        if case != "second_derivative":
            return gradients(*args)
        return jax.grad(lambda *args: sum(jnp.sum(x**2) for x in gradients(*args)), (0, 3))(*args)

    with dispatch.interpret_kernels():
        actual = quick(functools.partial(result, "pallas_tpu"), q, k, v, g)
    expected = quick(functools.partial(result, "chunked"), q, k, v, g)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) <= 1e-5
