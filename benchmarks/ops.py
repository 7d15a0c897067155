"""Benchmark every op's implementations against each other.

``python -m benchmarks.ops --op delta_rule --cases headline``. Implementations of one case take turns in one run, so
that their ratios hold on a busy machine too. The op's tests run first, and red tests stop the benchmark. One JSON file
and one roofline figure per op go to ``benchmarks/results``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ceilings, measure, peers, report
from benchmarks.programs import programs
from seqmodels import cli
from seqmodels.errors import UserError, suggest
from seqmodels.ops import cases, dispatch

DTYPES = ("float32", "bfloat16")
CPU_BYTES = 2**26  # cases that move as much are left to accelerators, unless --case names them


def usable(op: cases.Op, case: cases.Case, wanted: Sequence[str]) -> list[str]:
    """Names of the implementations to run: `wanted`, or all that this platform can run.

    The reference's gradient keeps every state: accelerators leave it out of headline cases.
    """
    for name in wanted:
        if name not in op.implementations:
            known = ", ".join(op.implementations)
            hint = suggest(name, op.implementations)
            raise UserError(f"--impl {name}: {op.name} has no such implementation, expected one of {known}{hint}")
    native = dispatch.KERNELS.get({"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend()))
    foreign = set(dispatch.KERNELS.values()) - {native}
    foreign |= {"reference"} if case.large and jax.default_backend() != "cpu" else set()
    return list(wanted) or [name for name in op.implementations if name not in foreign]


def benchmark(
    op: cases.Op,
    chosen: Sequence[cases.Case],
    *,
    dtypes: Sequence[str] = ("float32",),
    impls: Sequence[str] = (),
    rounds: int = 7,
    matmul_size: int | None = None,
) -> list[dict[str, Any]]:
    """One row per case, dtype and implementation.

    ``flops`` and ``bytes`` are the case's own counts for the forward pass over its measured time, ``roof`` is the share
    of what the machine's measured ceilings allow, ``ratio`` and ``peer_ratio`` how many times faster than the reference
    and the fastest peer (`peers`) forward and backward together are, ``None`` without one. ``difference`` is that of a
    peer's output from ours.
    """
    return [row for case in chosen for dtype in dtypes for row in _rows(op, case, dtype, impls, rounds, matmul_size)]


def _rows(op: cases.Op, case: cases.Case, dtype: str, impls: Sequence[str], rounds: int, matmul_size: int | None):
    args, kwargs = case.make(jax.random.key(0), jnp.dtype(dtype))
    ready = {}
    for impl in usable(op, case, impls):
        try:
            ready[impl] = programs(op, impl, args, kwargs)
        except ValueError as refusal:
            if impls or "refuses this call" not in str(refusal):
                raise
            print(f"{op.name} {case.name} {dtype} {impl}: left out: {refusal}")
    ours = list(ready)
    if jax.default_backend() == "gpu" and not impls:
        ready |= _peers(op, case, dtype, args, kwargs)
    parts = {(impl, part): getattr(made, part) for impl, made in ready.items() for part in ("forward", "both")}
    timed = measure.interleave(parts, rounds=rounds)
    base = timed.get(("reference", "both"))
    peer = min((timed[name, "both"] for name in ready if name not in ours), default=None)
    flops, moved = case.flops(), case.bytes(jnp.dtype(dtype))
    roof = ceilings.measure(dtype, matmul_size).bound(flops, moved)
    for impl, made in ready.items():
        seconds, seconds_both = timed[impl, "forward"], timed[impl, "both"]
        yield {
            "op": op.name,
            "case": case.name,
            "dtype": dtype,
            "impl": impl,
            "ms_forward": 1e3 * seconds,
            "ms_both": 1e3 * seconds_both,
            "ratio": base / seconds_both if base else None,
            "peer_ratio": peer / seconds_both if peer else None,
            "difference": peers.difference(made.forward(), ready[ours[0]].forward()) if impl not in ours else None,
            "flops": flops / seconds,
            "bytes": moved / seconds,
            "roof": flops / seconds / roof,
            "intensity": flops / moved,
            "peak_bytes": made.peak_bytes,
            "compile_seconds": made.compile_seconds,
        }


def _peers(op: cases.Op, case: cases.Case, dtype: str, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    ready = {}
    for peer in peers.find(op.name, args, kwargs):
        found = peers.programs(peer, args)
        if isinstance(found, str):
            print(f"{op.name} {case.name} {dtype} {peer.name}: left out: {found}")
        else:
            ready[peer.name] = found
    return ready


def select(op: cases.Op, which: str, names: Sequence[str]) -> list[cases.Case]:
    """The cases called `names`; without names all, small or headline ones, as far as they suit a CPU if this is one."""
    if names:
        return [case for case in op.cases if case.name in names]
    chosen = [case for case in op.cases if which == "all" or case.large == (which == "headline")]
    fit = [case for case in chosen if jax.default_backend() != "cpu" or case.bytes() < CPU_BYTES]
    left = [case.name for case in chosen if case not in fit]
    if left:
        print(f"{op.name}: left out on a CPU: {', '.join(left)}; --case NAME runs one all the same")
    return fit


def printable(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `benchmark` in the units of the printed table."""
    return {
        **{name: row[name] for name in ("op", "case", "dtype", "impl")},
        "ms fwd": row["ms_forward"],
        "ms fwd+bwd": row["ms_both"],
        "x reference": row["ratio"],
        "x peer": row["peer_ratio"],
        "GFLOP/s": row["flops"] / 1e9,
        "GB/s": row["bytes"] / 1e9,
        "% of roof": 100 * row["roof"],
        "peak MB": row["peak_bytes"] / 1e6,
    }


def require_green(op: str) -> None:
    """Run the op's tests and refuse to go on when they fail or do not exist."""
    files = [
        str(path.relative_to(measure.ROOT))
        for path in sorted((measure.ROOT / "tests/ops").glob("test_*.py"))
        if path.stem.startswith(f"test_{op}") or is_about(path, op)
    ]
    if not files:
        raise UserError(f"--op {op} has no tests/ops/test_{op}.py; write its tests, or pass --skip-tests")
    print(f"running {' '.join(files)}")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", *files], cwd=measure.ROOT)
    if done.returncode:
        raise UserError(f"the tests of {op} are red ({' '.join(files)}); mend them first, or pass --skip-tests")


def is_about(path: Path, op: str) -> bool:
    """Whether a test file of kernels, which may serve several ops, has tests of `op`."""
    kernels = path.stem.endswith(("_tpu", "_gpu", "_kernels"))
    return kernels and re.search(rf"\b{op}\b", path.read_text(encoding="utf-8")) is not None


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m benchmarks.ops", description="Benchmark every op's implementations against each other."
    )
    parser.add_argument("--op", nargs="+", default=[], help="ops to run; all by default")
    parser.add_argument("--impl", nargs="+", default=[], help="implementations; by default all that run here")
    parser.add_argument("--cases", choices=("small", "headline", "all"), default="headline", help="which shapes")
    parser.add_argument("--case", nargs="+", default=[], help="names of cases, instead of --cases")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, help="dtypes of the inputs; by default bfloat16 on a GPU, else float32"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of every program; the median is reported")
    parser.add_argument("--skip-tests", action="store_true", help="measure without running the op's tests first")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for JSON and figures")
    cli.add_platform(parser)
    return parser


@cli.command
def main(argv: list[str]) -> None:
    """Command line."""
    options = _parser().parse_args(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # peers need memory too
    cli.use_platform(options.platform)
    options.dtype = options.dtype or ["bfloat16" if jax.default_backend() == "gpu" else "float32"]
    known = cases.discover()
    for name in options.op:
        if name not in known:
            raise UserError(f"--op {name} is unknown, expected one of {', '.join(known)}{suggest(name, known)}")
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} is not positive, expected at least 1")
    everything = []
    loaded = [cases.load(name) for name in options.op or known]
    names = {case.name for op in loaded for case in op.cases}
    for name in options.case:
        if name not in names:
            raise UserError(
                f"--case {name} is unknown, expected one of {', '.join(sorted(names))}{suggest(name, names)}"
            )
    for op in loaded:
        chosen = select(op, options.cases, options.case)
        if not options.skip_tests:
            require_green(op.name)
        rows = benchmark(op, chosen, dtypes=options.dtype, impls=options.impl, rounds=options.rounds)
        _store(op.name, rows, options)
        everything += rows
    print("\n" + report.table([printable(row) for row in everything]))


def _store(op: str, rows: list[dict[str, Any]], options: Any) -> None:
    roofs = {dtype: ceilings.measure(dtype) for dtype in options.dtype}
    path = options.out / f"{op}_{jax.default_backend()}.json"
    content = {
        "environment": measure.environment() | {"peers": peers.versions()},
        "cases": options.case or options.cases,
        "rounds": options.rounds,
        "tests_skipped": options.skip_tests,
        "ceilings": {dtype: roof._asdict() for dtype, roof in roofs.items()},
        "rows": rows,
    }
    report.save(path, content)
    report.roofline(path.with_suffix(".png"), f"{op} on {content['environment']['device']}", rows, roofs)


if __name__ == "__main__":
    sys.exit(main())
