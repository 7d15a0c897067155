"""Other libraries' programs for our cases, to run beside ours: flash-linear-attention and PyTorch's attention.

They are found if they are installed and there is an NVIDIA GPU; nothing here needs them. A peer takes the case's own
arguments, so that both sides do the same work on the same numbers; the largest difference of the outputs is reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.programs import Programs


class Peer(NamedTuple):
    """A program of another library for one case."""

    name: str
    module: str
    run: Callable[..., Any]  # (module, *tensors) -> out


def versions() -> dict[str, str]:
    """Versions of what is installed of the packages that peers come from."""
    installed = {}
    for name in ("flash-linear-attention", "torch", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def find(op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Peer]:
    """The peers that compute `op` with these arguments, whether they are installed or not."""
    if op == "linear_attention" and not kwargs:
        return [_linear(*args)]
    if op == "delta_rule" and not kwargs:
        return [_delta(*args)]
    if op == "attention" and kwargs.get("causal") and not any(v for k, v in kwargs.items() if k != "causal"):
        return [
            Peer(f"torch_{backend.lower()}", "torch", functools.partial(_attend, backend=backend))
            for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION")
        ]
    return []


def _linear(q: Any, k: Any, v: Any, g: Any = None) -> Peer:
    if g is not None and g.ndim == 4:
        return Peer("fla_gla", "fla.ops.gla", lambda ops, q, k, v, g: ops.chunk_gla(q, k, v, g)[0])
    decay = {} if g is None else {"g_gamma" if g.ndim == 1 else "g": 3}

    def run(ops: Any, *tensors: Any) -> Any:
        named = {name: tensors[place] for name, place in decay.items()}
        return ops.chunk_simple_gla(*tensors[:3], **named)[0]

    return Peer("fla_simple_gla", "fla.ops.simple_gla", run)


def _delta(q: Any, k: Any, v: Any, beta: Any, g: Any = None) -> Peer:
    if g is None:
        run = lambda ops, q, k, v, beta: ops.chunk_delta_rule(q, k, v, beta)[0]  # noqa: E731
        return Peer("fla_delta_rule", "fla.ops.delta_rule", run)
    if g.ndim == 4:
        run = lambda ops, q, k, v, beta, g: ops.chunk_kda(q, k, v, g, beta)[0]  # noqa: E731
        return Peer("fla_kda", "fla.ops.kda", run)
    run = lambda ops, q, k, v, beta, g: ops.chunk_gated_delta_rule(q, k, v, g, beta)[0]  # noqa: E731
    return Peer("fla_gated_delta_rule", "fla.ops.gated_delta_rule", run)


def _attend(torch: Any, q: Any, k: Any, v: Any, *, backend: str) -> Any:
    attention = importlib.import_module("torch.nn.attention")
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    with attention.sdpa_kernel(getattr(attention.SDPBackend, backend)):
        out = torch.nn.functional.scaled_dot_product_attention(
            *heads_first, is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
        )
    return out.transpose(1, 2)


@dataclasses.dataclass(frozen=True)
class Finished:
    """Results on a torch device; `jax.block_until_ready` waits for them like for JAX's."""

    tensors: Any
    synchronize: Callable[[], None]

    def block_until_ready(self) -> Finished:
        self.synchronize()
        return self


def programs(peer: Peer, args: Sequence[Any], device: str = "cuda") -> Programs | str:
    """The peer ready to run on `args`, or why it cannot be."""
    try:
        torch: Any = importlib.import_module("torch")
        module = importlib.import_module(peer.module)
    except ImportError as error:
        return f"not installed: {error}"
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    tensors = [_tensor(torch, x, device) for x in args]
    floating = [x for x in tensors if x.is_floating_point()]
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward() -> Finished:
        with torch.no_grad():
            return Finished(peer.run(module, *tensors), synchronize)

    def both() -> Finished:
        out = peer.run(module, *tensors)
        return Finished((out, torch.autograd.grad(out, floating, torch.ones_like(out), allow_unused=True)), synchronize)

    return Programs(forward, both, _peak_bytes(torch, both) if device == "cuda" else 0, 0.0)


def _tensor(torch: Any, x: Any, device: str) -> Any:
    """A leaf with the values of a JAX array."""
    wide = np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)
    moved = torch.from_numpy(np.array(wide)).to(device=device, dtype=getattr(torch, str(x.dtype)))
    return moved.requires_grad_(jnp.issubdtype(x.dtype, jnp.inexact))


def _peak_bytes(torch: Any, run: Callable[[], Any]) -> int:
    run()  # compiles and tunes
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def difference(theirs: Finished, ours: Any) -> float:
    """Largest difference of the outputs, relative to the largest output."""
    expected = theirs.block_until_ready().tensors.float().cpu().numpy()
    actual = np.asarray(jax.tree.leaves(ours)[0], np.float32)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
