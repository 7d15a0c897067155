"""Evaluate a trained run.

``python -m eval.run --run runs/quickstart --tasks perplexity,recall,passkey --perplexity.split valid``

Results are printed, written to ``RUN_DIR/eval/TASK.json`` and drawn to ``RUN_DIR/eval/TASK.png``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from eval.base import Task, discover
from seqmodels import cli
from seqmodels.config import override, to_json
from seqmodels.errors import UserError, suggest

DEFAULT = "perplexity"


def choose(names: str, arguments: list[str]) -> dict[str, Task]:
    """The tasks of a comma-separated list, with the overrides ``--TASK.FIELD VALUE``.

    Raises:
      UserError: an unknown task (with a suggestion), or an override that does not fit.
    """
    known = discover()
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise UserError(f"--tasks {name!r} is unknown{suggest(name, known)}; choose from {', '.join(known)}")
    if not wanted:
        raise UserError(f"--tasks {names!r} names no task; choose from {', '.join(known)}")
    fields = [(name, known[name], dataclasses.field(default_factory=known[name])) for name in dict.fromkeys(wanted)]
    options = dataclasses.make_dataclass("Options", fields, frozen=True)
    chosen = override(options(), arguments, prog="python -m eval.run")
    return {name: getattr(chosen, name) for name, _, _ in fields}


def table(results: dict[str, float]) -> str:
    """One result per line, names left and numbers right."""
    width = max(map(len, results))
    return "\n".join(f"  {name:<{width}}  {value:>14,.10g}" for name, value in results.items())


def write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def draw(task: Task, results: dict[str, float], path: Path) -> None:
    """Write the task's figure as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    task.plot(results, figure.subplots())
    figure.savefig(path, dpi=120)


def evaluate(run: Any, tasks: dict[str, Task], directory: Path) -> dict[str, Any]:
    """Run `tasks` on a loaded run; prints, writes and returns ``{task: {"results": ..., ...}}``."""
    directory.mkdir(parents=True, exist_ok=True)
    report = {}
    for name, task in tasks.items():
        task = task.of_run(run.experiment)
        start = time.monotonic()
        results = task.run(run.model, run.params, run.experiment.data)
        seconds = time.monotonic() - start
        print(f"{name} (step {run.step}, {seconds:.1f} s)\n{table(results)}", flush=True)
        report[name] = {
            "results": results,
            "step": run.step,
            "seconds": round(seconds, 2),
            "task": json.loads(to_json(task)),
        }
        write(directory / f"{name}.json", json.dumps(report[name], indent=2) + "\n")
        draw(task, results, directory / f"{name}.png")
    return report


@cli.command
def main(argv: list[str]) -> None:
    """Entry point."""
    parser = cli.Parser(
        prog="python -m eval.run",
        description="Evaluate a trained run; --TASK.FIELD VALUE changes a task.",
        add_help=False,
    )
    parser.add_argument("--run", metavar="RUN_DIR", help="run directory of train.py")
    parser.add_argument("--tasks", default=DEFAULT, metavar="LIST", help=f"comma-separated: {', '.join(discover())}")
    parser.add_argument("--step", type=int, default=None, help="checkpoint to evaluate; the newest by default")
    parser.add_argument("--json", metavar="FILE", help="write all results to this file too")
    cli.add_platform(parser)
    args, rest = parser.parse_known_args(argv)
    if "-h" in rest or "--help" in rest:
        parser.print_help()
        print()
    tasks = choose(args.tasks, rest)
    if args.run is None:
        raise UserError("--run is missing; give a run directory, such as --run runs/quickstart")
    cli.use_platform(args.platform)

    from seqmodels.runs import load_run

    report = evaluate(load_run(args.run, args.step), tasks, Path(args.run) / "eval")
    if args.json:
        write(Path(args.json), json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
