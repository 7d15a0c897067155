"""Train an experiment.

``python train.py --config configs/quickstart.py --model.dim 512 --train.steps 2000``

Every field of the experiment is an option; ``--help`` lists them. The run directory, ``runs/NAME`` by default, is never
overwritten unasked: continue it with ``--resume``, or start again with ``--replace``.
"""

from __future__ import annotations

import argparse
import lzma
import math
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import jax

from eval.perplexity import PerplexityConfig
from seqmodels import cli
from seqmodels.config import fields_of
from seqmodels.data.corpus import TextCorpus
from seqmodels.errors import UserError
from seqmodels.runs import load_experiment
from seqmodels.sharding import join_processes
from seqmodels.train.experiment import Experiment
from seqmodels.train.loop import FitResult, fit
from seqmodels.validate import validate

FREE_ON_RESUME = {"remat", "scan", "init_std"}
"""Fields of the model that a resumed run may change: they do not change what its parameters mean."""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Experiment, Path]:
    """Options, experiment and run directory of a command line.

    Raises:
      UserError: see `seqmodels.cli.parse_experiment`; or options that contradict each other.
    """
    parser = cli.Parser(prog="train.py", description="Train an experiment.")
    parser.add_argument("--run-dir", metavar="DIR", help="where everything is written; runs/NAME by default")
    parser.add_argument("--replace", action="store_true", help="delete an earlier run in the run directory first")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="continue the run in DIR (default: the run directory); without --config, as its config.json says",
    )
    cli.add_platform(parser)
    args, experiment = cli.parse_experiment(parser, argv, find_experiment)
    return args, experiment, Path(args.resume or args.run_dir or Path("runs") / experiment.name)


def find_experiment(args: argparse.Namespace) -> Experiment:
    """The experiment of ``--config``, or that of the run to resume."""
    if args.resume and args.run_dir and Path(args.resume) != Path(args.run_dir):
        raise UserError(f"--resume {args.resume!r} and --run-dir {args.run_dir!r} differ; give one of them")
    if args.resume is not None and args.replace:
        raise UserError("--resume and --replace contradict each other; give one of them")
    if args.resume is not None and args.config is None:
        run_dir = args.resume or args.run_dir
        if not run_dir:
            raise UserError("--resume without --config needs the run: give --resume RUN_DIR")
        return load_experiment(run_dir)
    return cli.load_config(args)


def check_same_model(run_dir: Path, experiment: Experiment) -> None:
    """A resumed run must keep its architecture.

    Raises:
      UserError: names the first field that differs.
    """
    saved = load_experiment(run_dir).model
    old, new = dict(_leaves(saved)), dict(_leaves(experiment.model))
    for field in [*new, *(name for name in old if name not in new)]:
        if old.get(field) != new.get(field) and field not in FREE_ON_RESUME:
            raise UserError(
                f"model.{field}={new.get(field)!r} differs from {old.get(field)!r} of the run in {run_dir}; "
                f"set it back to resume, or choose another --run-dir"
            )


def _leaves(config: Any) -> list[tuple[str, Any]]:
    found = []
    for path in fields_of(config):
        value = config
        for part in path.split("."):
            value = value[int(part)] if isinstance(value, tuple) else getattr(value, part)
        found.append((path, value))
    return found


def clear(run_dir: Path) -> None:
    """Delete an earlier run.

    Raises:
      UserError: the directory holds something else.
    """
    if not run_dir.exists() or (run_dir.is_dir() and not any(run_dir.iterdir())):
        return
    if not (run_dir / "config.json").is_file() and not (run_dir / "checkpoints").is_dir():
        raise UserError(f"--replace: {str(run_dir)!r} is not a run directory; choose another --run-dir")
    inside = next(
        (
            file.parent
            for file in run_dir.glob("*/**/config.json")
            if "checkpoints" not in file.relative_to(run_dir).parts
        ),
        None,
    )
    if inside is not None:
        raise UserError(f"--replace: {str(run_dir)!r} holds another run, {str(inside)!r}; move it away first")
    shutil.rmtree(run_dir)


def report(experiment: Experiment, result: FitResult) -> None:
    """Evaluate on the test files, beside general-purpose compressors on the same bytes."""
    data = experiment.data
    if not isinstance(data, TextCorpus) or jax.process_count() > 1:
        return
    text = data.bytes_of("test")
    if not text:
        return
    print(f"evaluating on {len(data.documents()['test'])} held-out files ({len(text) / 1e6:.2f} MB) ...", flush=True)
    task = PerplexityConfig().of_run(experiment)
    ours = task.run(experiment.model.make(), result.state.params, data)["perplexity/bits_per_byte"]
    compressors = {"zlib": len(zlib.compress(text, 9)), "lzma": len(lzma.compress(text, preset=9))}
    for name, size in compressors.items():
        print(f"{name} on the same files: {8 * size / len(text):.2f} bits per byte")
    print(f"run directory: {result.run_dir}")
    print(f"held-out bits per byte: {ours:.2f}" if math.isfinite(ours) else "held-out bits per byte: not finite")


@cli.command
def main(argv: list[str]) -> None:
    """Entry point."""
    args, experiment, run_dir = parse(argv)
    cli.use_platform(args.platform)
    resume = args.resume is not None
    if resume:
        check_same_model(run_dir, experiment)
    if args.replace:
        join_processes(experiment.mesh)
        validate(experiment)
        if jax.process_index() == 0:
            clear(run_dir)
    result = fit(experiment, run_dir, resume=resume)
    if result.stopped_by is None:
        report(experiment, result)


if __name__ == "__main__":
    sys.exit(main())
