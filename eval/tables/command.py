"""The command line of a table: run its cells, show it beside the paper's, and check the paper's claims."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from eval.tables.cells import Cell, Interrupted, Store, sweep, write
from eval.tables.claims import Claim, Verdict, broken, judge, listed
from eval.tables.rows import Rows, from_csv, from_result, to_csv
from eval.tables.training import Training
from seqmodels import cli
from seqmodels.errors import UserError, suggest
from seqmodels.train.ahead_of_time import compile_report

SCALES = ("laptop", "gpu", "paper", "tiny")
COMMITTED = Path(__file__).parent / "results"
CSV, MARKDOWN, FIGURE = "results.csv", "table.md", "figure.png"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper."""

    name: str
    """Of its module."""
    title: str
    source: str
    """The paper."""
    cells: Callable[[str], list[Cell]]
    """All cells of a scale: laptop, gpu, paper, or tiny (a few steps, for tests)."""
    claims: tuple[Claim, ...]
    markdown: Callable[[Rows], str]
    """Ours beside the paper's."""
    draw: Callable[[Rows, Any], None]
    """Draw the rows on a matplotlib figure."""


def entry(table: Table) -> Callable[..., int]:
    """The entry point of ``python -m eval.tables.NAME``.

    Exit codes: 0, also while other processes run cells; 1 if a claim fails, or if cells that it needs are missing and
    ``--cells`` was not given; 2 after a mistake of the user's; 130 after a signal.
    """

    @cli.command
    def main(argv: list[str]) -> None:
        args = parse(table, argv)
        cells = distinct(table.cells(args.scale))
        chosen = choose(cells, args.cells)
        out = Path(args.out or Path("runs") / "tables" / table.name / args.scale)
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {str(out)!r} is a file; give a directory")
        if args.check:
            source = Path(args.out) if args.out else COMMITTED / table.name / args.scale
            conclude(table, args.scale, read(table, args.scale, source), cells, partial=args.cells is not None)
            return
        store = Store(out)
        if args.list:
            print("\n".join(f"{state(store, cell):<10}  {cell.name}" for cell in chosen))
            return
        if args.compile:
            compile_cells(chosen, args.compile)
            return
        cli.use_platform(args.platform)
        try:
            running = sweep(chosen, store, replace=args.replace, say=lambda line: print(line, flush=True))
        except Interrupted as signal:
            print(f"stopped by {signal}; the same command goes on from here", flush=True)
            raise KeyboardInterrupt from None
        if running:
            print(f"left to other processes, which write the table: {', '.join(running)}", flush=True)
            return
        rows = collect(store, cells)
        verdicts = publishable(table, args.scale, rows, cells, out)
        if args.publish:
            publish(out, COMMITTED / table.name / args.scale)
        settle(verdicts, partial=args.cells is not None)

    return main


def parse(table: Table, argv: list[str]) -> argparse.Namespace:
    """The options.

    Raises:
      UserError: an unknown one, or some that contradict each other.
    """
    parser = cli.Parser(prog=f"python -m eval.tables.{table.name}", description=table.title)
    parser.add_argument("--scale", choices=SCALES, default="laptop", help="size of the cells")
    parser.add_argument("--cells", metavar="GLOB", help="only cells whose names match, such as 'mqar_*'")
    parser.add_argument(
        "--list", action="store_true", help="print the names of the cells and whether they are finished"
    )
    parser.add_argument("--out", metavar="DIR", help="where everything is written; runs/tables/NAME/SCALE by default")
    parser.add_argument("--replace", action="store_true", help="run cells again whose config has changed since")
    parser.add_argument("--publish", action="store_true", help="copy table and figure to eval/tables/results")
    parser.add_argument(
        "--compile", metavar="SLICE", help="run nothing; compile the cells' training steps for a TPU slice: v5e:16x16"
    )
    parser.add_argument(
        "--check", action="store_true", help="run nothing; hold published results (or DIR) to the claims"
    )
    cli.add_platform(parser)
    args = parser.parse_args(argv)
    clash = [f"--{name}" for name in ("list", "replace", "publish", "compile") if getattr(args, name)]
    if args.check and clash:
        raise UserError(f"--check and {clash[0]} contradict each other; give one of them")
    return args


def distinct(cells: list[Cell]) -> list[Cell]:
    """`cells`, whose names must differ."""
    names = [cell.name for cell in cells]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"cells={sorted(twice)} have one name; make them differ")
    return cells


def choose(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """The cells whose names match `pattern`; all without one.

    Raises:
      UserError: there is none.
    """
    chosen = [cell for cell in cells if pattern is None or fnmatch.fnmatchcase(cell.name, pattern)]
    if not chosen:
        hint = suggest(str(pattern), [cell.name for cell in cells])
        raise UserError(f"--cells {pattern!r} matches none of {len(cells)} cells{hint}; --list shows them")
    return chosen


def compile_cells(cells: Sequence[Cell], topology: str) -> None:
    """Compile the training step of every cell that trains an experiment, a line each.

    Raises:
      UserError: none of them does.
    """
    experiments = [cell.job.experiment for cell in cells if isinstance(cell.job, Training)]
    if not experiments:
        raise UserError(f"--compile {topology}: no cell trains an experiment; choose others with --cells")
    jax.config.update("jax_platforms", "cpu")
    for experiment in experiments:
        print(compile_report(experiment, topology), flush=True)


def state(store: Store, cell: Cell) -> str:
    """How far a cell is."""
    if store.change(cell) is not None:
        return "outdated"
    return "finished" if store.result(cell) else "begun" if store.begun(cell) else "to do"


def collect(store: Store, cells: Sequence[Cell]) -> Rows:
    """The rows of all finished cells of the table, whichever command ran them."""
    current = [cell for cell in cells if store.change(cell) is None]
    return Rows(tuple(from_result(result) for cell in current if (result := store.result(cell))))


def read(table: Table, scale: str, source: Path) -> Rows:
    """Rows that were written before.

    Raises:
      UserError: there are none.
    """
    file = source / CSV
    if not file.is_file():
        run = f"python -m eval.tables.{table.name} --scale {scale} --publish"
        raise UserError(f"--check: no results in {file}; run {run} first")
    return from_csv(file.read_text(encoding="utf-8"))


def publishable(table: Table, scale: str, rows: Rows, cells: Sequence[Cell], out: Path) -> list[Verdict]:
    """Write CSV, Markdown and figure, and print the table; returns what became of the claims."""
    verdicts = [judge(claim, rows) for claim in table.claims]
    text = document(table, scale, rows, cells, verdicts)
    write(out / CSV, to_csv(rows))
    write(out / MARKDOWN, text)
    plot(table, rows, out / FIGURE)
    print(f"{text}\nwritten to {out}", flush=True)
    return verdicts


def conclude(table: Table, scale: str, rows: Rows, cells: Sequence[Cell], partial: bool) -> None:
    """Print table and claims, and exit with code 1 if a claim fails."""
    verdicts = [judge(claim, rows) for claim in table.claims]
    print(document(table, scale, rows, cells, verdicts), flush=True)
    settle(verdicts, partial)


def settle(verdicts: Sequence[Verdict], partial: bool) -> None:
    """Count the claims, and exit with code 1 if one fails."""
    asserted = [verdict.status for verdict in verdicts if verdict.claim.asserted]
    counts = {status: asserted.count(status) for status in ("holds", "fails", "not measured")}
    print(
        f"of {len(asserted)} asserted claims: {listed(counts.items())}; {len(verdicts) - len(asserted)} more are "
        "only reported",
        flush=True,
    )
    if broken(verdicts, partial):
        raise SystemExit(1)


def document(table: Table, scale: str, rows: Rows, cells: Sequence[Cell], verdicts: Sequence[Verdict]) -> str:
    """The table in Markdown, with what it was made by and what became of the claims."""
    dates = sorted(str(row["date"])[:10] for row in rows)
    hours = sum(float(row["seconds"]) for row in rows) / 3600
    facts = [f"scale {scale}", f"{len(rows)} of {len(cells)} cells", f"{hours:.2f} hours"]
    facts += [", ".join(map(str, rows.values(name))) for name in ("device", "versions") if rows.values(name)]
    facts += [dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"] if dates else []
    claims = "\n".join(f"- {verdict}" for verdict in verdicts)
    body = table.markdown(rows) if len(rows) else "Not run yet."
    return f"# {table.title}\n\n{table.source}\n\nOurs: {'; '.join(facts)}.\n\n{body}\n\n## Claims\n\n{claims}\n"


def plot(table: Table, rows: Rows, path: Path) -> None:
    """Write the table's figure as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    table.draw(rows, figure)
    figure.savefig(path, dpi=120)


def publish(out: Path, where: Path) -> None:
    """Copy what a sweep wrote to where it is committed."""
    where.mkdir(parents=True, exist_ok=True)
    for name in (CSV, MARKDOWN, FIGURE):
        shutil.copyfile(out / name, where / name)
    print(f"published in {where}", flush=True)
