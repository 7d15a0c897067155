"""Our chunked gated delta rule against PyTorch's public chunked fallback for the same op, on the same cores.

``python -m benchmarks.delta_rule_vs_torch`` needs ``torch`` and ``transformers``, which nothing else here does. Forward
and backward at B1 T4096 H4 K=V=64 in float32; the two take turns, and their outputs and gradients are compared first.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, report
from seqmodels import cli, ops
from seqmodels.errors import UserError

NAMES = ("q", "k", "v", "g", "beta")


def inputs(length: int, heads: int = 4, key: int = 64, value: int = 64) -> dict[str, np.ndarray]:
    """Queries and keys of length one, log-decays ``g`` <= 0, ``beta`` in (0, 1), and the output's cotangent."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    return {
        "q": unit(normal(1, length, heads, key)),
        "k": unit(normal(1, length, heads, key)),
        "v": normal(1, length, heads, value),
        "g": -np.exp(normal(1, length, heads) - 2),
        "beta": 1 / (1 + np.exp(-normal(1, length, heads))),
        "cotangent": normal(1, length, heads, value),
    }


def ours(arrays: dict[str, np.ndarray]) -> Callable[[], Any]:
    """The output and the gradients of `NAMES`, by `seqmodels.ops.delta_rule`."""
    values = [jnp.asarray(arrays[name]) for name in NAMES]
    cotangent = jnp.asarray(arrays["cotangent"])

    @jax.jit
    def both(values, cotangent):
        def forward(q, k, v, g, beta):
            return ops.delta_rule(q, k, v, beta, g, impl="chunked")[0]

        out, pull = jax.vjp(forward, *values)
        return out, *pull(cotangent)

    return lambda: jax.block_until_ready(both(values, cotangent))


def theirs(arrays: dict[str, np.ndarray], threads: int) -> Callable[[], Any]:
    """The same by ``torch_chunk_gated_delta_rule`` of ``transformers`` (Qwen3-Next)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle torch threads must not spin while the other side runs
    try:
        torch = importlib.import_module("torch")
        fallback = importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    except ImportError as error:
        raise UserError(
            f"this comparison needs torch and transformers ({error}); pip install torch transformers"
        ) from None
    torch.set_num_threads(threads)
    values = {name: torch.from_numpy(arrays[name]).requires_grad_() for name in NAMES}
    cotangent = torch.from_numpy(arrays["cotangent"])

    def both():
        q, k, v, g, beta = values.values()
        out = fallback.torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, chunk_size=64)[0]
        return out.detach(), *torch.autograd.grad(out, list(values.values()), cotangent)

    return both


@cli.command
def main(argv: list[str]) -> None:
    """Command line."""
    parser = cli.Parser(prog="python -m benchmarks.delta_rule_vs_torch", description="Our delta rule against PyTorch")
    parser.add_argument("--length", type=int, default=4096, help="tokens")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=9, help="turns of either side; the median is reported")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON file")
    options = parser.parse_args(argv)
    cli.use_platform("cpu")
    arrays = inputs(options.length)
    programs = {"torch": theirs(arrays, options.threads), "seqmodels": ours(arrays)}
    torch_values, our_values = (programs[name]() for name in programs)
    errors = {}
    for name, true, mine in zip(("out", *NAMES), torch_values, our_values, strict=True):
        errors[name] = float(np.abs(np.asarray(mine) - true.numpy()).max() / np.abs(true.numpy()).max())
    seconds = measure.interleave(programs, rounds=options.rounds)
    ratio = seconds["torch"] / seconds["seqmodels"]
    print(report.table([{"impl": name, "ms fwd+bwd": 1e3 * value} for name, value in seconds.items()]))
    print(f"largest difference relative to the largest value: {max(errors.values()):.1e}")
    print(f"seqmodels is {ratio:.2f}x faster than torch")
    content = {
        "environment": measure.environment() | {"torch_threads": options.threads},
        "torch": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "shape": {"B": 1, "T": options.length, "H": 4, "K": 64, "V": 64, "dtype": "float32"},
        "rounds": options.rounds,
        "seconds": seconds,
        "ratio": ratio,
        "relative_differences": errors,
    }
    report.save(options.out / "delta_rule_vs_torch_cpu.json", content)


if __name__ == "__main__":
    sys.exit(main())
