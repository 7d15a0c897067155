"""Model-FLOPs utilisation: what share of the hardware's matmul speed training reaches."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
}
"""Dense bfloat16 FLOP/s per device, from the vendors' data sheets, by the beginning of ``device_kind``."""


def peak_flops(devices: list[Any]) -> float:
    """FLOP/s of all `devices` together: known for the kind, or measured with a float32 matmul.

    Host CPU devices share the same cores, so one is measured for all of them (of a process).
    """
    kind = devices[0].device_kind
    known = [name for name in PEAK if kind.startswith(name)]
    if known:
        return PEAK[max(known, key=len)] * len(devices)
    per_device = measure_matmul(jax.local_devices()[0])
    return per_device * (jax.process_count() if devices[0].platform == "cpu" else len(devices))


def measure_matmul(device: Any, size: int = 1024, repeats: int = 3) -> float:
    """FLOP/s of the best of a few ``size x size`` float32 matmuls on `device`."""
    a = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    matmul = jax.jit(jnp.matmul)
    matmul(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        matmul(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
