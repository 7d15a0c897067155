"""How cost grows: with the length of the sequence, with the position of a decoded token, with the model's depth.

``python -m benchmarks.scaling --part length decode compile``. Everything is a ratio of programs that took turns in one
run; exponents are slopes of least-squares lines through logarithms (1 is linear).
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, report
from seqmodels import cli, ops
from seqmodels.errors import UserError
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.base import MixerConfig, discover
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models.block import BlockConfig
from seqmodels.models.lm import LMConfig

DIM = 32  # the width that `MixerConfig.tiny` is made for
LENGTHS = (1024, 4096, 16384, 65536)
POSITIONS = (1_000, 100_000)
DEPTHS = (4, 24)

Compiled = tuple[jax.stages.Compiled, tuple[Any, ...]]  # a program and its arguments
Program = Callable[[int], Compiled]  # from the length


def recurrent() -> dict[str, MixerConfig]:
    """Tiny configs of the mixers whose state does not grow with the sequence."""
    tiny = {name.removesuffix("Config"): kind.tiny() for name, kind in discover().items()}
    size = lambda config, length: config.make(DIM).state_bytes(length)  # noqa: E731
    return {name: config for name, config in tiny.items() if size(config, 1024) == size(config, 2048)}


def op_step(name: str, length: int) -> Compiled:
    """Forward and backward of a gated op at B1 H4 K=V=64 in float32."""
    run = {"linear_attention": _linear_attention, "delta_rule": _delta_rule}[name]
    keys = jax.random.split(jax.random.key(0), 5)
    wide = [jax.random.normal(key, (1, length, 4, 64)) / 8 for key in keys[:3]]
    beta, gate = (jax.random.normal(key, (1, length, 4)) for key in keys[3:])
    values = (*wide, jax.nn.sigmoid(beta), -jax.nn.softplus(gate - 2))
    loss = lambda values: jnp.sum(run(*values)[0])  # noqa: E731
    return jax.jit(jax.value_and_grad(loss)).lower(values).compile(), (values,)


def _linear_attention(q, k, v, beta, log_decay):
    return ops.linear_attention(q, k, v * beta[..., None], log_decay)


def _delta_rule(q, k, v, beta, log_decay):
    return ops.delta_rule(q, k, v, beta, log_decay)


def mixer_step(config: MixerConfig, length: int) -> Compiled:
    """Forward and backward of a mixer at B1 and width `DIM`."""
    mixer = config.make(DIM)
    x = jax.random.normal(jax.random.key(1), (1, length, DIM))
    params = mixer.init(jax.random.key(0), x[:, :16])
    loss = lambda params, x: jnp.sum(mixer.apply(params, x)[0])  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, x).compile(), (params, x)


def length_programs(mixers: dict[str, MixerConfig]) -> dict[str, Program]:
    """Forward and backward against T: the two headline ops, and mixers."""
    made: dict[str, Program] = {name: functools.partial(op_step, name) for name in ("linear_attention", "delta_rule")}
    return made | {name: functools.partial(mixer_step, config) for name, config in mixers.items()}


def length_rows(lengths: Sequence[int], programs: dict[str, Program], rounds: int) -> list[dict[str, Any]]:
    """Time and memory of every program at every length, and their exponents."""
    rows = []
    for name, make in programs.items():
        made = {length: make(length) for length in lengths}
        calls = {length: functools.partial(compiled, *args) for length, (compiled, args) in made.items()}
        seconds = measure.interleave(calls, rounds=rounds)
        held = {length: measure.peak_bytes(compiled) for length, (compiled, _) in made.items()}
        row: dict[str, Any] = {"name": name}
        row |= {f"ms T={length}": 1e3 * seconds[length] for length in lengths}
        row |= {f"MB T={length}": held[length] / 1e6 for length in lengths}
        rows.append(row | {"time exponent": exponent(seconds), "memory exponent": exponent(held)})
        print(f"{name}: time exponent {exponent(seconds):.2f}, memory exponent {exponent(held):.2f}", flush=True)
    return rows


def exponent(cost: Mapping[int, float]) -> float:
    """Slope of ``log cost`` against ``log T``."""
    return float(np.polyfit(np.log(list(cost)), np.log(list(cost.values())), 1)[0])


def decode_rows(positions: Sequence[int], mixers: dict[str, MixerConfig], rounds: int) -> list[dict[str, Any]]:
    """Time of one decoded token after each number of tokens, per recurrent mixer."""
    rows = []
    for name, config in mixers.items():
        mixer = config.make(DIM)
        tokens = jax.random.normal(jax.random.key(1), (1, max(positions), DIM))
        params = mixer.init(jax.random.key(0), tokens[:, :16])
        call = jax.jit(lambda params, x, state, mixer=mixer: mixer.apply(params, x, state)[:2])
        states = {at: call(params, tokens[:, :at], mixer.init_state(1))[1] for at in positions}
        steps = {at: functools.partial(call, params, tokens[:, :1], state) for at, state in states.items()}
        seconds = measure.interleave(steps, rounds=4 * rounds)  # short programs: more turns cost little
        row: dict[str, Any] = {"name": name, "state bytes": mixer.state_bytes()}
        row |= {f"us at {at}": 1e6 * seconds[at] for at in positions}
        rows.append(row | {"ratio": seconds[positions[-1]] / seconds[positions[0]]})
    return rows


def compile_rows(depths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Seconds to trace and compile the loss and gradient of a hybrid model of each depth."""
    samples: dict[int, list[float]] = {depth: [] for depth in depths}
    for _ in range(rounds):
        for depth in depths:
            samples[depth].append(compile_seconds(depth))
    seconds = {depth: statistics.median(values) for depth, values in samples.items()}
    row: dict[str, Any] = {"name": "three Gated DeltaNet, one sliding-window attention"}
    row |= {f"s depth {depth}": value for depth, value in seconds.items()}
    return [row | {"ratio": seconds[depths[-1]] / seconds[depths[0]]}]


def compile_seconds(depth: int) -> float:
    """Seconds from nothing to a compiled training gradient of a model with `depth` blocks."""
    recurrent_block = BlockConfig(GatedDeltaNetConfig.tiny(), MLPConfig())
    window_block = BlockConfig(AttentionConfig(num_heads=2, window=64), MLPConfig())
    model = LMConfig(dim=DIM, depth=depth, pattern=(*[recurrent_block] * 3, window_block), vocab_size=264).make()
    tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)

    def loss(params, tokens):
        hidden: Any = model.apply(params, tokens, method="hidden")[0]
        return ops.linear_cross_entropy(hidden, model.head(params), tokens)

    jax.clear_caches()
    return measure.timed(lambda: jax.jit(jax.value_and_grad(loss)).lower(params, tokens).compile())[0]


@cli.command
def main(argv: list[str]) -> None:
    """Command line."""
    parser = cli.Parser(prog="python -m benchmarks.scaling", description="How cost grows with length and depth.")
    parts = ("length", "decode", "compile")
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts), help="what to measure")
    parser.add_argument("--mixer", nargs="+", default=[], help="mixers, such as GatedDeltaNet; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every program; the median is reported")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON file")
    cli.add_platform(parser)
    options = parser.parse_args(argv)
    cli.use_platform(options.platform)
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are among what is measured
    mixers = recurrent()
    for name in options.mixer:
        if name not in mixers:
            raise UserError(f"--mixer {name} is no recurrent mixer, expected one of {', '.join(mixers)}")
    mixers = {name: mixers[name] for name in options.mixer or mixers}
    measure_part: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "length": lambda: length_rows(LENGTHS, length_programs(mixers), options.rounds),
        "decode": lambda: decode_rows(POSITIONS, mixers, options.rounds),
        "compile": lambda: compile_rows(DEPTHS, options.rounds),
    }
    for part in options.part:
        rows = measure_part[part]()
        print(f"\n{part}\n{report.table(rows)}", flush=True)
        path = options.out / f"scaling_{part}_{jax.default_backend()}.json"
        report.save(path, {"environment": measure.environment(), "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
