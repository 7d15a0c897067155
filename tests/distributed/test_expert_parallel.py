"""Memories split over the ``expert`` axis of the mesh: the numbers of one device, and what the devices exchange."""

import jax
import jax.numpy as jnp

from seqmodels.collectives import Traffic, collectives, report
from seqmodels.mixers import GatedDeltaNetConfig, MixtureOfMemoriesConfig
from seqmodels.mixers.memory_order import order_by_memory
from seqmodels.ops.partition import Dims, plan
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from tests.mixers.memories import DIM, build
from tests.shared import relative_error

B, T = 4, 32
CFG = MixtureOfMemoriesConfig(GatedDeltaNetConfig(num_heads=2, head_dim=8, expand_v=1.0), num_memories=8, top_k=2)


def test_eight_devices_give_the_numbers_of_one(capsys):
    """Outputs, states and all gradients, over documents and padding, from a carried state."""
    mixer, params = build(CFG)
    x = jax.random.normal(jax.random.key(0), (B, T, DIM))
    ids = jnp.array([[1] * 20 + [2] * 12, [3] * T, [0] * 4 + [1] * 28, [1] * 9 + [4] * 23])

    def loss(params, x, state):
        y, state, aux = mixer.apply({"params": params}, x, state, ids)
        return jnp.sum(y**2) + aux["loss/balance"], (y, state)

    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    state = mixer.init_state(B)
    keys = iter(jax.random.split(jax.random.key(7), 16))
    filled = [0.1 * jax.random.normal(next(keys), leaf.shape) for leaf in jax.tree.leaves(state.memories)]
    state = state._replace(memories=jax.tree.unflatten(jax.tree.structure(state.memories), filled))
    (_, (y, after)), gradients = jax.jit(run)(params, x, state)

    partitioner = Partitioner(make_mesh(MeshConfig(data=2, expert=4)))
    place = partitioner.parameters(jax.eval_shape(mixer.init, jax.random.key(0), x)["params"])
    assert place["k_proj"]["kernel"].spec[0] in ("expert", ("expert",)), "every device holds its own memories"
    rows = lambda leaf: partitioner.sharding(("batch", *[None] * (leaf.ndim - 1)), leaf.shape)  # noqa: E731
    places = (place, rows(x), jax.tree.map(rows, state))
    with partitioner.activate():
        jitted = jax.jit(run, in_shardings=places, out_shardings=((None, (places[1], places[2])), places[:2]))
        compiled = jitted.lower(params, x, state).compile()
    (_, (same, held)), sharded = compiled(*jax.device_put((params, x, state), places))
    for got, wanted in zip(jax.tree.leaves((same, held, sharded)), jax.tree.leaves((y, after, gradients)), strict=True):
        assert relative_error(got, wanted) <= 1e-4

    found = collectives(compiled)
    with capsys.disabled():
        print(f"\nforward and backward of {CFG.num_memories} memories over 4 x 2 devices: {report(found)}")
    assert found["all-reduce"].count > 0, "outputs are summed over the devices"
    states = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.memories))
    assert found["all-gather"].bytes <= 2 * states, "only the states, which lie whole on all devices before and after"


def test_training_gathers_nothing():
    """Tokens, chunks and choices of a memory stay where it is; outputs and gradients are summed."""
    mixer, params = build(CFG)
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, expert=4)))
    x, ids = jax.ShapeDtypeStruct((B, T, DIM), jnp.float32), jax.ShapeDtypeStruct((B, T), jnp.int32)
    place = partitioner.parameters(jax.eval_shape(mixer.init, jax.random.key(0), x)["params"])
    rows = [partitioner.sharding(("batch", *[None] * (leaf.ndim - 1)), leaf.shape) for leaf in (x, ids)]

    def loss(params, x, ids):
        y, _, aux = mixer.apply({"params": params}, x, None, ids)
        return jnp.sum(y**2) + aux["loss/balance"]

    with partitioner.activate():
        jitted = jax.jit(jax.grad(loss), in_shardings=(place, *rows), out_shardings=place)
        assert set(collectives(jitted.lower(params, x, ids).compile())) == {"all-reduce"}


def test_kernels_of_memories_are_split_by_groups_too():
    """Four groups of rows over all eight devices."""
    dims = Dims(("B T H K",), "B T H K")

    def planned(rows):
        return plan(dims, (jax.ShapeDtypeStruct((rows, 8, 2, 16), jnp.float32),))

    with Partitioner(make_mesh(MeshConfig(data=2, expert=4))).activate():
        order = order_by_memory(jnp.zeros((4, 8, 1), jnp.int32), jnp.ones((4, 8), bool), None, num_memories=8, groups=4)
        with order.rows_as_batch():
            assert planned(4 * 4).inputs[0][0] == ("expert", "data")
            assert "B=12 does not divide by mesh axes {'expert': 4, 'data': 2}" in planned(4 * 3)
        assert planned(4).inputs[0][0] == "data" and "expert" in planned(4).idle


def test_the_report_counts_bytes():
    class Program:
        def as_text(self):
            return """
  %a = f32[4,8]{1,0} all-reduce(%x), channel_id=1
  %b = (bf16[2]{0}, s32[3]{0}) all-gather-start(%y), channel_id=2
  %c = f32[] all-reduce(%z), to_apply=%add
  %d = f32[8] add(%all-reduce.1, %q)
  %e = f32[8] all-reduce(%r), channel_id=3, replica_groups={{0},{1},{2},{3}}, use_global_device_ids=true
"""

    found = collectives(Program())
    assert found == {"all-gather": Traffic(1, 16), "all-reduce": Traffic(2, 132)}
    assert report(found) == "all-gather: 1 (1.6e-05 MB), all-reduce: 2 (0.000132 MB)"
    assert report({}) == "no collectives"
