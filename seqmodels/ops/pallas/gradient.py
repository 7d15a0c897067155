"""Derivatives of an op that runs as a kernel: the same for every op and every kind of accelerator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp


def differentiable(
    forward: Callable[..., tuple[Any, Any]], backward: Callable[..., Any], chunked: Callable[..., Any]
) -> Callable[..., Any]:
    """``kernel(call, inputs, ids) -> results`` with a gradient kernel, and second derivatives of the chunked form.

    Args:
      forward: ``(call, inputs, ids, save) -> (results, states)``: what `backward` needs if `save`, else ``None``.
      backward: ``(call, inputs, ids, states, cotangents) -> gradients``, of the structure of `inputs`.
      chunked: ``(call, inputs, ids) -> results`` in plain XLA.

    `call` is static and hashable, `inputs` a pytree of floating-point arrays, `ids` integers or ``None``.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def kernel(call, inputs, ids):
        return forward(call, inputs, ids, save=False)[0]

    def kernel_fwd(call, inputs, ids):
        results, states = cast(Any, saving(call, inputs, ids))
        return results, (inputs, ids, states)

    def kernel_bwd(call, residuals, cotangents):
        return gradients(call, *residuals, cotangents), None

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def saving(call, inputs, ids):
        """The forward pass of a gradient. A function of its own so that second derivatives need none of its kernel."""
        return forward(call, inputs, ids, save=True)

    def saving_fwd(call, inputs, ids):
        results, states = cast(Any, saving(call, inputs, ids))
        return (results, states), (inputs, ids, states)

    def saving_bwd(call, residuals, cotangents):
        return kernel_bwd(call, residuals, cotangents[0])  # nothing flows back through the saved states, see below

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def gradients(call, inputs, ids, states, cotangents):
        return backward(call, inputs, ids, states, cotangents)

    def gradients_fwd(call, *args):
        return gradients(call, *args), args

    def gradients_bwd(call, residuals, outer):
        """Those of the chunked form, as a function of the inputs alone."""
        inputs, ids, states, cotangents = residuals

        def plain(inputs, cotangents):
            return jax.vjp(lambda inputs: chunked(call, inputs, ids), inputs)[1](cotangents)[0]

        d_inputs, d_cotangents = jax.vjp(plain, inputs, cotangents)[1](outer)
        return d_inputs, None, jax.tree.map(jnp.zeros_like, states), d_cotangents

    kernel.defvjp(kernel_fwd, kernel_bwd)
    saving.defvjp(saving_fwd, saving_bwd)
    gradients.defvjp(gradients_fwd, gradients_bwd)
    return kernel
