"""One step of decoding costs what the recurrence costs, not what a chunk does."""

import jax
import jax.numpy as jnp
import pytest

from seqmodels import ops

B, H, K, V = 2, 2, 32, 32


@pytest.mark.parametrize("decay", [(B, 1, H), (B, 1, H, K)], ids=["scalar", "vector"])
@pytest.mark.parametrize("delta", [False, True], ids=["linear_attention", "delta_rule"])
def test_flops_of_a_step(delta, decay):
    op = ops.delta_rule if delta else ops.linear_attention
    shapes = [(B, 1, H, K), (B, 1, H, K), (B, 1, H, V), *([(B, 1, H)] if delta else []), decay]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    state = jax.ShapeDtypeStruct((B, H, K, V), jnp.float32)
    step = jax.jit(lambda state, *arrays: op(*arrays, state=state))
    flops = step.lower(state, *arrays).compile().cost_analysis()["flops"]
    recurrence = B * H * K * V * (7 if delta else 5)  # decay, (predict,) write, read; a multiply-add counts two
    assert flops < 1.5 * recurrence
