"""The AL-RNN table: how well Lorenz-63 and Rössler are reconstructed with how many rectified units.

``python -m eval.tables.alrnn --scale laptop``
"""

from __future__ import annotations

import sys
from typing import Any

from configs.tables import _alrnn as recipe
from configs.tables._alrnn import INTERVAL, LORENZ, MINIMAL, ROSSLER
from eval.reconstruction import Reconstruction, References
from eval.tables.cells import Cell, slug
from eval.tables.claims import Claim, Finding, listed
from eval.tables.command import Table, entry
from eval.tables.figures import legend
from eval.tables.rows import NotMeasured, Row, Rows, grid

PAPER = "arXiv:2410.14240"
PRINTED = {"d_stsp": (3.52, 3.21), "d_h": (0.143, 0.100), "regions": (3, 3)}
"""Of Lorenz-63 with P = 2: the released tutorial's run of 2000 epochs, and the released weights run again."""
EXPONENT = {LORENZ: 0.906, ROSSLER: 0.0714}
"""Largest Lyapunov exponent of the equations, per unit of time; known values, not the paper's."""
NEAR = 0.5
"""Standard deviations; the fixed points of the released weights lie 0.2 and 0.4 from the centres of the lobes."""
NEVER = "never"
REFERENCE = "reference"


def cells(scale: str) -> list[Cell]:
    """Both systems by P, the other forcing intervals, and what the numbers can be held against."""
    size = recipe.SIZES[scale]
    entries = [
        (system, rectified, INTERVAL[system]) for system in INTERVAL for rectified in size.schedules[system].rectified
    ]
    entries += [(LORENZ, MINIMAL[LORENZ], interval) for interval in recipe.CONTROLS]
    found = []
    for system, rectified, interval in entries:
        every = NEVER if interval is None else interval
        job = Reconstruction(
            recipe.recipe(scale, system, rectified, interval), exponent_steps=min(10_000, size.free_run)
        )
        labels = {"system": system, "rectified": rectified, "interval": every, "seed": 0}
        found.append(Cell(slug(ascii_name(system), f"p{rectified}", f"tau-{every}"), labels, job))
    for system in INTERVAL:
        labels = {"system": system, "rectified": REFERENCE, "interval": REFERENCE, "seed": 0}
        found.append(
            Cell(slug(ascii_name(system), REFERENCE), labels, References(recipe.flow(scale, system), size.free_run))
        )
    return found


def ascii_name(system: str) -> str:
    """For file names."""
    return system.replace("ö", "oe")


# Rows


def row(rows: Rows, system: str, rectified: int | str, interval: int | str | None = None) -> Row:
    """One entry of the table, at the system's own forcing interval unless another is given.

    Raises:
      NotMeasured: it is missing.
    """
    every = interval if interval is not None else INTERVAL[system] if rectified != REFERENCE else REFERENCE
    found = [r for r in rows.where(system=system, rectified=rectified) if r["interval"] == every]
    if not found:
        raise NotMeasured(f"{system}, P = {rectified}, interval {every}")
    return found[0]


def runs(of: Row, name: str) -> list[float]:
    """A metric of all seeds; those that are not finite are left out."""
    return [float(of[key]) for key in of if key.startswith(f"dynamics/{name}@")]


def middle(of: Row, name: str) -> float:
    """The median over seeds, infinite where it was not finite."""
    return float(of.get(f"dynamics/{name}", float("inf")))


def curve(rows: Rows, system: str) -> dict[int, Row]:
    """The entries of a system by P."""
    found = [r for r in rows.where(system=system) if r["interval"] == INTERVAL[system]]
    return {int(r["rectified"]): r for r in sorted(found, key=lambda r: int(r["rectified"]))}


# Claims


def minimal(system: str) -> Any:
    """D_stsp at the minimal P is at most half of that with one unit less, and about the same with more."""

    def test(rows: Rows) -> Finding:
        least = MINIMAL[system]
        scores = {rectified: middle(r, "d_stsp") for rectified, r in curve(rows, system).items()}
        missing = [rectified for rectified in (least - 1, least, least + 1) if rectified not in scores]
        if missing:
            raise NotMeasured(", ".join(f"{system}, P = {rectified}" for rectified in missing))
        drop = scores[least - 1] - scores[least]
        change = max(abs(score - scores[least]) for rectified, score in scores.items() if rectified > least)
        shown = listed((f"P = {rectified}:", score) for rectified, score in scores.items())
        holds = scores[least] <= 0.5 * scores[least - 1] and change <= 0.25 * drop
        rule = f"at P = {least} at most half of before, and from there on within a quarter of that drop"
        return Finding(holds, f"medians {shown}; {rule}")

    return test


def regions(system: str, count: int) -> Any:
    """Most seeds visit `count` regions at the minimal P."""

    def test(rows: Rows) -> Finding:
        found = runs(row(rows, system, MINIMAL[system]), "regions")
        shown = ", ".join(f"{value:.0f}" for value in found)
        return Finding(2 * sum(value == count for value in found) > len(found), f"regions by seed: {shown}")

    return test


def mostly_three(rows: Rows) -> Finding:
    found = runs(row(rows, LORENZ, MINIMAL[LORENZ]), "share_of_three")
    shown = ", ".join(f"{value:.1%}" for value in found)
    return Finding(2 * sum(value >= 0.95 for value in found) > len(found), f"share by seed: {shown}; 95% in most seeds")


def centres(system: str) -> Any:
    """In most seeds every centre has a real fixed point near it, at the minimal P."""

    def test(rows: Rows) -> Finding:
        of = row(rows, system, MINIMAL[system])
        found, seeds = runs(of, "centre_distance"), len(runs(of, "d_stsp"))
        shown = ", ".join(f"{value:.2f}" for value in sorted(found)) or "none"
        evidence = f"largest distance of {seeds} seeds: {shown}; at most {NEAR} in most of them"
        return Finding(2 * sum(value <= NEAR for value in found) > seeds, evidence)

    return test


def reaches_the_paper(rows: Rows) -> Finding:
    of = row(rows, LORENZ, MINIMAL[LORENZ])
    found = {name: middle(of, name) for name in ("d_stsp", "d_h")}
    holds = all(value <= PRINTED[name][0] for name, value in found.items())
    return Finding(holds, f"{listed(found.items())}; the tutorial's {PRINTED['d_stsp'][0]} and {PRINTED['d_h'][0]}")


def exponent(rows: Rows) -> Finding:
    found = {system: middle(row(rows, system, MINIMAL[system]), "lyapunov") for system in INTERVAL}
    holds = all(abs(value / EXPONENT[system] - 1) <= 0.25 for system, value in found.items())
    return Finding(holds, f"{listed(found.items())}; known {listed(EXPONENT.items())}; within a quarter")


def forcing(rows: Rows) -> Finding:
    least = MINIMAL[LORENZ]
    found = {every: middle(row(rows, LORENZ, least, every), "d_stsp") for every in (INTERVAL[LORENZ], 1, NEVER)}
    shown = listed((f"every {every}" if every != NEVER else NEVER, score) for every, score in found.items())
    return Finding(min(found, key=lambda every: found[every]) == INTERVAL[LORENZ], f"median D_stsp: {shown}")


CLAIMS = (
    Claim("Lorenz-63 is reconstructed from P = 2 on and not below", f"{PAPER}, D_stsp against P", minimal(LORENZ)),
    Claim("Rössler is reconstructed from P = 1 on and not below", f"{PAPER}, D_stsp against P", minimal(ROSSLER)),
    Claim("Lorenz-63 with P = 2 uses three of four regions", PAPER, regions(LORENZ, 3)),
    Claim("It spends nearly all of its time in three", "our reading", mostly_three, asserted=False),
    Claim("Rössler with P = 1 uses both regions", PAPER, regions(ROSSLER, 2)),
    Claim("The centres of both lobes of Lorenz-63 are fixed points of the map", PAPER, centres(LORENZ)),
    Claim(
        "Lorenz-63 with P = 2 scores no worse than the released tutorial's run", f"{PAPER}, its code", reaches_the_paper
    ),
    Claim("The largest Lyapunov exponents are those of the equations", "known values", exponent, asserted=False),
    Claim("Forcing every step, or never, is worse", "our reading", forcing, asserted=False),
)


# Showing

COLUMNS = {
    "D_stsp": "d_stsp",
    "D_H": "d_h",
    "20-step error": "prediction_error",
    "regions": "regions",
    "centre distance": "centre_distance",
    "Lyapunov exponent": "lyapunov",
}


def markdown(rows: Rows) -> str:
    """Medians over seeds with least and greatest D_stsp, beside the paper's numbers."""
    lines = []
    for of in sorted((r for r in rows if r["rectified"] != REFERENCE), key=order):
        scores = [of.get(f"dynamics/{name}") for name in COLUMNS.values()]
        spread = runs(of, "d_stsp")
        between = f"{min(spread):.2f}–{max(spread):.2f}" if spread else None
        main = (of["system"], of["rectified"], of["interval"]) == (LORENZ, MINIMAL[LORENZ], INTERVAL[LORENZ])
        paper = [" / ".join(f"{v:g}" for v in PRINTED[name]) if main else None for name in PRINTED]
        every = of["interval"] if of["interval"] == NEVER else f"{of['interval']:g}"
        lines.append([of["system"], f"{of['rectified']:g}", every, scores[0], between, *scores[1:], *paper])
    first, *others = COLUMNS
    header = ["system", "P", "tau", first, "range", *others, *(f"paper: {n}" for n in ("D_stsp", "D_H", "regions"))]
    notes = [reference_note(rows, system) for system in INTERVAL]
    legend_text = (
        "Medians over seeds; D_stsp in nats over 30 bins per channel, 10,000 generated rows against the test split. "
        "The paper's are the released tutorial's run and its released weights run again, on its own data; for other P "
        "it prints a figure."
    )
    return "\n\n".join([grid(header, lines), legend_text, *filter(None, notes)])


def order(of: Row) -> tuple[Any, ...]:
    """System, then the curve over P, then the controls."""
    system = str(of["system"])
    return (list(INTERVAL).index(system), of["interval"] != INTERVAL[system], str(of["interval"]), of["rectified"])


def reference_note(rows: Rows, system: str) -> str | None:
    """What a perfect and a blind generator score."""
    try:
        of = row(rows, system, REFERENCE)
    except NotMeasured:
        return None
    names = {"another stretch of the true trajectory": "sample", "a Gaussian cloud": "cloud"}
    scores = (
        f"{what} {of[f'reference/d_stsp_{name}']:.2f} (D_H {of[f'reference/d_h_{name}']:.3f})"
        for what, name in names.items()
    )
    return f"D_stsp of as many rows of {system}: {', '.join(scores)}."


def draw(rows: Rows, figure: Any) -> None:
    """D_stsp against P: every seed a dot, the medians a line, the references dashed."""
    figure.set_size_inches(9, 4)
    for axes, system in zip(figure.subplots(1, 2), INTERVAL):
        found = curve(rows, system)
        axes.plot(list(found), [middle(r, "d_stsp") for r in found.values()], marker="o", label="median of seeds")
        dots = [(rectified, score) for rectified, r in found.items() for score in runs(r, "d_stsp")]
        axes.plot([x for x, _ in dots], [y for _, y in dots], ".", color="gray", label="one seed")
        if reference_note(rows, system):
            of = row(rows, system, REFERENCE)
            for name, colour in (("cloud", "tab:red"), ("sample", "tab:green")):
                label = {"cloud": "Gaussian cloud", "sample": "true trajectory"}[name]
                axes.axhline(float(of[f"reference/d_stsp_{name}"]), ls="--", color=colour, label=label)
        if system == LORENZ:
            axes.plot([MINIMAL[LORENZ]], [PRINTED["d_stsp"][0]], "k*", ms=10, label="paper's tutorial")
        axes.axvline(MINIMAL[system] - 0.5, color="black", lw=0.8, alpha=0.4)
        axes.set(xlabel="rectified units P", ylabel="D_stsp (nats)", title=system, ylim=(0, None))
        axes.set_xticks(list(found))
        axes.grid(alpha=0.3)
        legend(axes)


TABLE = Table(
    "alrnn",
    "Almost-linear RNNs on two chaotic attractors",
    f"{PAPER}: how many rectified units Lorenz-63 and Rössler need.",
    cells,
    CLAIMS,
    markdown,
    draw,
)
main = entry(TABLE)

if __name__ == "__main__":
    sys.exit(main())
