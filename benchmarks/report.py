"""Results as a table, as JSON and as a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns; floats with three significant digits, ``None`` as a dash."""
    if not rows:
        return "(nothing measured)"
    cells = [list(rows[0]), *([_show(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {_short(path)}")


def roofline(path: Path, title: str, rows: Sequence[Mapping[str, Any]], ceilings: Mapping[str, Any]) -> None:
    """Draw achieved FLOP/s against FLOP per byte, under the roof of every dtype.

    Args:
      path: the PNG to write.
      title: of the figure.
      rows: each with ``case``, ``dtype``, ``impl``, ``intensity`` (FLOP/byte) and ``flops`` (FLOP/s).
      ceilings: dtype -> `benchmarks.ceilings.Ceilings`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    points = [row["intensity"] for row in rows]
    left, right = min(points, default=1) / 4, max(points, default=1) * 4
    for dtype, roof in ceilings.items():
        ridge = roof.flops / roof.bytes
        x = sorted({left, min(max(ridge, left), right), right})
        axes.plot(x, [min(roof.flops, roof.bytes * i) for i in x], "-", color="grey")
        axes.annotate(
            f"{dtype} roof", (right, min(roof.flops, roof.bytes * right)), ha="right", va="bottom", fontsize=8
        )
    for index, impl in enumerate(sorted({row["impl"] for row in rows})):
        chosen = [row for row in rows if row["impl"] == impl]
        axes.plot([r["intensity"] for r in chosen], [r["flops"] for r in chosen], "o", color=f"C{index}", label=impl)
        for row in chosen:
            axes.annotate(f"{row['case']} {row['dtype']}", (row["intensity"], row["flops"]), fontsize=6)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="FLOP/s, forward", title=title)
    axes.grid(alpha=0.3, which="both")
    if rows:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    print(f"wrote {_short(path)}")


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
