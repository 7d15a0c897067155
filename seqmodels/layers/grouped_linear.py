"""Linear maps of which every block of tokens takes its own: the cost is that of one, however many there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.layers.linear import default_kernel_init
from seqmodels.layers.param import param


def grouped_matmul(x: Array, kernel: Array, member: Array) -> Array:
    """``y[g,r,n] = x[g,r,n] @ kernel[g, member[g,r,n]]``.

    Blocks n are worked off one after the other, so that no more than one kernel per row is gathered at a time.

    Args:
      x: ``[G,R,N,C,in]``: G groups, R rows, N blocks of C tokens.
      kernel: ``[G,E,in,out]``.
      member: ``[G,R,N]`` int32 in ``0 .. E-1``.

    Returns:
      ``[G,R,N,C,out]``.
    """

    def block(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        tokens, index = xs  # [G,R,C,in], [G,R]
        chosen = jax.vmap(lambda table, i: table[i])(kernel, index)  # [G,R,in,out]
        return None, jnp.einsum("grci,grio->grco", tokens, chosen)

    xs = jax.tree.map(lambda z: jnp.moveaxis(z, 2, 0), (x, member))
    return jnp.moveaxis(jax.lax.scan(jax.checkpoint(block, prevent_cse=False), None, xs)[1], 0, 2)


class GroupedLinear(nn.Module):
    """`Linear` with `experts` kernels ``[experts,in,out]``, a block of tokens taking one of them; see `grouped_matmul`.

    The experts lie in G consecutive groups, and ``member [G,R,N]`` counts within a group.
    """

    features: int
    experts: int
    axes: tuple[str | None, str | None]  # logical names of a kernel's input and output axis
    use_bias: bool = False
    kernel_init: Callable[..., Array] = default_kernel_init
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, member: Array) -> Array:
        """``x [G,R,N,C,in] -> [G,R,N,C,features]``"""
        G = x.shape[0]
        each = lambda key, shape, dtype: jax.vmap(lambda k: self.kernel_init(k, shape[1:], dtype))(  # noqa: E731
            jax.random.split(key, shape[0])
        )
        shape = (self.experts, x.shape[-1], self.features)
        kernel = param(self, "kernel", each, shape, ("expert", *self.axes), self.param_dtype).astype(self.dtype)
        y = grouped_matmul(x.astype(self.dtype), kernel.reshape(G, -1, *shape[1:]), member)
        if not self.use_bias:
            return y
        axes, shape = ("expert", self.axes[1]), (self.experts, self.features)
        bias = param(self, "bias", nn.initializers.zeros, shape, axes, self.param_dtype).astype(self.dtype)
        chosen = jax.vmap(lambda table, i: table[i])(bias.reshape(G, -1, self.features), member)  # [G,R,N,out]
        return y + chosen[..., None, :]


class GroupedLowRank(nn.Module):
    """``up(down(x))`` with kernels per expert; only `up` may have a bias."""

    features: int
    rank: int
    experts: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, member: Array) -> Array:
        """``x [G,R,N,C,in] -> [G,R,N,C,features]``"""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = GroupedLinear(self.rank, self.experts, ("embed", None), name="down", **types)(x, member)
        up = GroupedLinear(self.features, self.experts, (None, "heads"), self.use_bias, name="up", **types)
        return up(x, member)
