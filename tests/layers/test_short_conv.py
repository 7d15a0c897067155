"""`ShortConv`: the module around the op."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from seqmodels import ops
from seqmodels.layers.short_conv import ShortConv


def test_module_is_the_op_with_its_parameters():
    x = jax.random.normal(jax.random.key(0), (2, 6, 5))
    ids = jnp.array([[1, 1, 0, 1, 2, 2]] * 2)
    conv = ShortConv(width=3, use_bias=True)
    boxed = conv.init(jax.random.key(1), x)
    assert boxed["params"]["kernel"].names == (None, "heads") and boxed["params"]["bias"].names == ("heads",)
    params = meta.unbox(boxed)["params"]
    state = jnp.ones((2, 2, 5))
    y, after = conv.apply({"params": params}, x, state, ids)
    want = ops.short_conv(x, params["kernel"], params["bias"], activation="silu", state=state, segment_ids=ids)
    np.testing.assert_array_equal(y, want[0])
    np.testing.assert_array_equal(after, want[1])
    _, per_segment = conv.apply({"params": params}, x, None, ids, 2)
    assert per_segment.shape == (2, 2, 2, 5)


def test_initialisation_and_zero_state():
    conv = ShortConv(width=4, dtype=jnp.bfloat16)
    x = jnp.ones((1, 2, 1000))
    (y, state), params = conv.init_with_output(jax.random.key(0), x)
    kernel = meta.unbox(params)["params"]["kernel"]
    assert jnp.abs(kernel).max() <= 0.5 and kernel.min() < -0.49 and kernel.max() > 0.49
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    zero = conv.init_state(1, 1000)
    assert zero.shape == state.shape and zero.dtype == state.dtype
    np.testing.assert_array_equal(conv.apply(params, x, zero)[0], y)
