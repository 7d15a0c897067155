"""The numbers of a table: rows of labels, metrics and provenance, to and from CSV, and means over seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, str | float]

PROVENANCE = ("seconds", "resumed", "cell", "digest", "commit", "device", "devices", "versions", "date")
"""Columns that say where a row comes from."""
VARIED = {"learning_rate", "seed"}
"""Labels of the runs that one entry of a table stands for."""


class NotMeasured(Exception):
    """Cells that a claim speaks about are not there."""


class Stat(NamedTuple):
    """A metric over seeds, at the best learning rate."""

    mean: float
    deviation: float  # standard deviation over seeds; 0 for one seed
    count: int  # seeds

    @property
    def error(self) -> float:
        """Standard error of the mean; 0 for one seed."""
        return self.deviation / math.sqrt(self.count)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.deviation:.3f}" if self.count > 1 else "")


def exceeds(a: Stat, b: Stat, margin: float) -> bool:
    """Whether `a` is above `b` by `margin`, and by two standard errors of the difference."""
    return a.mean - b.mean >= max(margin, 2 * math.hypot(a.error, b.error))


@dataclasses.dataclass(frozen=True)
class Rows:
    """The finished cells of a table."""

    items: tuple[Row, ...]
    select: str = "valid/accuracy"
    """The held-out metric by which learning rates are chosen; the highest, or the lowest if it ends in ``loss``."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.items)

    def where(self, select: str | None = None, **labels: str | float) -> Rows:
        """The rows with these labels; learning rates are chosen by `select` from here on."""
        kept = tuple(row for row in self.items if all(row.get(name) == value for name, value in labels.items()))
        return Rows(kept, select or self.select)

    def values(self, name: str) -> list[Any]:
        """The different values of a column, in the order of the rows."""
        return list(dict.fromkeys(row[name] for row in self.items if name in row))

    def slices(self, prefix: str) -> dict[int, str]:
        """Metrics named ``prefixNUMBER …`` by their number: ``slices("recall/accuracy@")[64]``."""
        names = {name for row in self.items for name in row if name.startswith(prefix)}
        numbered = {int(name.removeprefix(prefix).split()[0]): name for name in names}
        return dict(sorted(numbered.items()))

    def best(self, **labels: str | float) -> tuple[Row, ...]:
        """The rows of all seeds at the learning rate whose mean held-out metric is best.

        Raises:
          NotMeasured: there is none with that metric.
          ValueError: `labels` name more than one entry of the table.
        """
        rows = [row for row in self.where(None, **labels) if self.select in row]
        if not rows:
            raise NotMeasured(", ".join(f"{name}={value}" for name, value in labels.items()) or "no cell")
        entries = {tuple(item for item in row.items() if is_label(item[0]) and item[0] not in VARIED) for row in rows}
        if len(entries) > 1:
            raise ValueError(f"labels={labels} name {len(entries)} entries of the table; give more labels")
        by_rate: dict[Any, list[Row]] = {}
        for row in rows:
            by_rate.setdefault(row.get("learning_rate"), []).append(row)
        sign = -1.0 if self.select.endswith("loss") else 1.0
        return tuple(max(by_rate.values(), key=lambda group: sign * mean(float(row[self.select]) for row in group)))

    def stat(self, metric: str, **labels: str | float) -> Stat:
        """`metric` over the seeds of one entry of the table, at its best learning rate.

        Raises:
          NotMeasured: there is none.
        """
        values = [float(row[metric]) for row in self.best(**labels) if metric in row]
        if not values:
            raise NotMeasured(f"{metric} of " + ", ".join(f"{name}={value}" for name, value in labels.items()))
        return Stat(mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    def find(self, metric: str, **labels: str | float) -> Stat | None:
        """`stat`, or ``None`` where it is not measured."""
        try:
            return self.stat(metric, **labels)
        except NotMeasured:
            return None


def is_label(column: str) -> bool:
    """Whether a column is a label: metrics have a slash."""
    return "/" not in column and column not in PROVENANCE


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(values)


def from_result(result: Mapping[str, Any]) -> Row:
    """The row of a cell's ``result.json``."""
    machine = result["machine"]
    where = {name: result[name] for name in ("seconds", "cell", "digest", "date")} | {
        "resumed": str(result["resumed"]),
        "commit": (machine["commit"] or "unknown") + ("+" if machine["uncommitted_changes"] else ""),
        "device": machine["device"],
        "devices": str(machine["devices"]),
        "versions": " ".join(f"{name}={version}" for name, version in machine["versions"].items()),
    }
    metrics = {name: value for name, value in result["metrics"].items() if value is not None}
    return {**result["labels"], **metrics, **where}


def to_csv(rows: Rows) -> str:
    """One line per cell; labels first, then metrics, then where they come from. Nothing stands for "not measured"."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    metrics = sorted(name for name in columns if "/" in name)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*filter(is_label, columns), *metrics, *PROVENANCE], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def from_csv(text: str) -> Rows:
    """What `to_csv` wrote."""
    return Rows(
        tuple({name: _value(name, v) for name, v in row.items() if v} for row in csv.DictReader(io.StringIO(text)))
    )


def _value(column: str, text: str) -> str | float:
    if column in PROVENANCE and column != "seconds":
        return text
    try:
        return float(text)
    except ValueError:
        return text


def grid(header: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown; ``None`` becomes a dash."""
    head = list(header)
    body = [[show(value) for value in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def show(value: Any) -> str:
    """A value in a Markdown table."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")
