"""A job that costs nothing, and a table of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from eval.tables.cells import Cell, Interrupted
from eval.tables.claims import Claim, Finding
from eval.tables.command import Table
from eval.tables.rows import Rows, grid
from seqmodels.train.diagnose import TrainingDiverged


@dataclasses.dataclass(frozen=True)
class Square:
    """``square/value = number ** 2``; every run leaves a line in ``runs.txt``."""

    number: float
    fails: str = ""
    """How: "signal" stops the first run, "diverges" every one."""

    def run(self, directory: Path) -> dict[str, float]:
        log = directory / "runs.txt"
        earlier = log.read_text() if log.exists() else ""
        log.write_text(earlier + "run\n")
        if self.fails == "diverges":
            raise TrainingDiverged("training diverged at step 1")
        if self.fails == "signal" and not earlier:
            raise Interrupted("SIGTERM")
        return {"square/value": self.number**2, "valid/accuracy": self.number}


def cell(number: float, fails: str = "", name: str | None = None) -> Cell:
    return Cell(name or f"square_{number:g}", {"number": number, "seed": 0}, Square(number, fails))


def grows(rows: Rows) -> Finding:
    one, two = (rows.stat("square/value", number=number).mean for number in (1, 2))
    return Finding(two > one, f"{one:.3f} and {two:.3f}")


def markdown(rows: Rows) -> str:
    return grid(["number", "square"], [[row["number"], row.get("square/value")] for row in rows])


def draw(rows: Rows, figure: Any) -> None:
    figure.subplots().set(xlabel="number", ylabel="square")


def table(numbers: tuple[float, ...] = (1, 2), fails: str = "") -> Table:
    claims = (
        Claim("Squares grow", "Euclid", grows),
        Claim("Reported", "ours", lambda rows: Finding(False, "x"), False),
    )
    cells = [cell(number, fails if number == numbers[-1] else "") for number in numbers]
    return Table("squares", "Squares", "A source.", lambda scale: cells, claims, markdown, draw)
