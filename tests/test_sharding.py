"""The mesh and the rules that place arrays on it."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from seqmodels.errors import UserError
from seqmodels.sharding import (
    MESH_AXES,
    MeshConfig,
    Partitioner,
    Rows,
    make_mesh,
    rows_of_process,
    share_of,
    to_devices,
    unbox,
)


def partitioner(**sizes) -> Partitioner:
    cfg = MeshConfig(**{"data": 1, **sizes})
    return Partitioner(make_mesh(cfg), cfg.rules)


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_mesh_takes_what_remains():
    mesh = make_mesh(MeshConfig(data=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1, "expert": 1}
    assert tuple(mesh.shape) == MESH_AXES


def test_smaller_mesh_takes_the_first_devices():
    assert make_mesh(MeshConfig(data=1, fsdp=2)).devices.size == 2


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({"data": 4, "fsdp": 4}, ["data=4 x fsdp=4", "16 devices", "there are 8", "--mesh.data"]),
        ({"data": -1, "fsdp": 3}, ["8 devices do not divide by 3"]),
        ({"data": -1, "fsdp": -1}, ["mesh.data and mesh.fsdp", "only one"]),
        ({"tensor": 0}, ["mesh.tensor=0", "at least 1"]),
        ({"rules": (("embed", "fdsp"),)}, ["'embed'", "fdsp", "fsdp"]),
    ],
)
def test_bad_meshes_are_named(sizes, parts):
    with pytest.raises(UserError) as caught:
        make_mesh(MeshConfig(**sizes))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_rules_split_parameters():
    split = partitioner(data=2, fsdp=2, tensor=2)
    assert split.spec(("embed", "heads"), (16, 32)) == P(("fsdp",), ("tensor",))
    assert split.spec(("layers", "mlp", "embed"), (3, 8, 4)) == P(None, ("tensor",), ("fsdp",))
    assert split.spec(("batch", "length"), (8, 5)) == P(("data", "fsdp"), None)


def test_what_does_not_divide_stays_whole(caplog):
    with caplog.at_level(logging.DEBUG, "seqmodels.sharding"):
        assert partitioner(fsdp=2, tensor=2).spec(("vocab", "embed"), (31, 16), "embedding") == P(None, ("fsdp",))
    assert "embedding: vocab of 31 does not divide by 2" in caplog.text


def test_one_mesh_axis_splits_one_dimension():
    assert partitioner(tensor=2).spec(("heads", "mlp"), (4, 4)) == P(("tensor",), None)


def test_parameters_and_optimiser_state_lie_together():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
            return x @ unbox(self.param("kernel", init, (8, 6)))

    split = partitioner(fsdp=4, tensor=2)
    boxed = jax.eval_shape(Module().init, jax.random.key(0), jnp.ones((1, 8)))
    shardings = split.parameters(boxed)
    assert shardings["params"]["kernel"].spec == P(("fsdp",), ("tensor",))
    params = unbox(boxed)
    state = {"count": abstract(), "mu": params, "row": {"params": {"kernel": abstract(8)}}}
    placed = split.like(state, params, shardings)
    assert placed["mu"]["params"]["kernel"] == shardings["params"]["kernel"]
    assert placed["count"].spec == P()
    assert placed["row"]["params"]["kernel"].spec == P()  # factored: another shape


@pytest.mark.parametrize(
    ("shape", "accumulate", "parts"),
    [
        ((6, 8), 1, ["train.batch_size=6", "mesh.data=2 x mesh.fsdp=2"]),
        ((8, 8), 4, ["train.batch_size=8", "train.accumulate=4"]),
        ((8, 9), 1, ["data.seq_len=9", "mesh.sequence=2"]),
    ],
)
def test_batches_that_do_not_divide_are_named(shape, accumulate, parts):
    with pytest.raises(UserError) as caught:
        partitioner(data=2, fsdp=2, sequence=2).batch({"tokens": abstract(*shape)}, accumulate)
    for part in parts:
        assert part in str(caught.value)


def test_rows_reach_the_devices():
    split = partitioner(data=2, fsdp=2, tensor=2)
    batch = {"tokens": np.arange(32).reshape(8, 4), "slices": np.arange(8)}
    shardings = split.batch(batch)
    assert rows_of_process(split, 8) == Rows(0, 1)
    placed = to_devices(batch, shardings)
    assert placed["tokens"].addressable_shards[0].data.shape == (2, 4)
    assert placed["slices"].addressable_shards[0].data.shape == (2,)
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])


def test_shares_of_processes():
    """Processes may hold separate rows, also scattered ones, or the same."""
    assert [share_of({0: {0, 1}, 1: {2, 3}}, p, 4) for p in (0, 1)] == [Rows(0, 2), Rows(1, 2)]
    assert [share_of({0: {0, 3}, 1: {1, 2}}, p, 4) for p in (0, 1)] == [Rows(0, 2), Rows(1, 2)]
    assert [share_of({0: {0, 1}, 1: {0, 1}}, p, 2) for p in (0, 1)] == [Rows(0, 1), Rows(0, 1)]
    with pytest.raises(UserError, match=r"mesh\.data"):
        share_of({0: {0, 1}, 1: {1, 2}}, 0, 3)


def test_tpu_meshes_follow_the_torus():
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    except Exception as error:  # depends on the plugin
        pytest.skip(f"libtpu gives no topology: {str(error).splitlines()[0][:100]}")
    mesh = make_mesh(MeshConfig(data=4, tensor=4), devices)
    for row in mesh.devices.reshape(4, 4):
        assert len({device.coords[0] for device in row}) == 1 or len({device.coords[1] for device in row}) == 1
