"""HiPPO bases by their step size: what a linear memory knows of its past ("How to Train Your HiPPO", arXiv:2206.12037),
and what classifiers that start from them learn.

``python -m eval.tables.hippo --scale laptop``
"""

from __future__ import annotations

import functools
import statistics
import sys
from typing import Any

from configs.tables import _hippo as recipe
from configs.tables._hippo import BEYOND, DIAGONAL, DIGITS, FITTING, MEASURES, RANGES, WINDOWED
from eval.tables.cells import Cell, slug
from eval.tables.claims import Claim, Finding, listed
from eval.tables.command import Table, entry
from eval.tables.figures import legend, line
from eval.tables.rows import NotMeasured, Rows, grid
from eval.tables.training import trainings

PAPER, S4D = "arXiv:2206.12037", "arXiv:2206.11893"
ACCURACY = "classification/accuracy"
KINDS = ("delay", "reconstruction")
NAMES = {"legs": "LegS", "legt": "LegT", "fourier": "FouT"}


def cells(scale: str) -> list[Cell]:
    """Every basis at every step size, untrained and trained."""
    size = recipe.SIZES[scale]
    trained = trainings(
        functools.partial(recipe.classify, scale),
        size.budget.learning_rates,
        size.seeds,
        task=(DIGITS,),
        basis=DIAGONAL,
        steps=RANGES,
    )
    return trained + [
        Cell(
            slug(measure, f"step{step:g}"),
            {"measure": measure, "step": step, "seed": 0},
            recipe.job(scale, measure, step),
        )
        for measure in MEASURES
        for step in size.steps
    ]


def error(rows: Rows, kind: str, measure: str, step: float, log: bool = False) -> float:
    """An error of a cell; 1 means that nothing is known.

    Raises:
      NotMeasured: the cell is not there.
    """
    metric = f"{kind}/log_error" if log else f"{kind}/error"
    found = [float(row[metric]) for row in rows.where(measure=measure, step=step) if metric in row]
    if not found:
        raise NotMeasured(f"{kind}, {measure}, step {step:g}")
    return found[0]


def logs(rows: Rows, kind: str) -> dict[str, dict[float, float]]:
    """Logarithms of the errors by basis and step; all of the grid.

    Raises:
      NotMeasured: a cell of the grid is missing, or there is no grid.
    """
    steps = sorted(rows.values("step"))
    if len(steps) < 2:
        raise NotMeasured("two or more step sizes")
    return {measure: {step: error(rows, kind, measure, step, log=True) for step in steps} for measure in MEASURES}


def accuracies(rows: Rows) -> dict[str, dict[str, float]]:
    """Of the trained classifiers, by basis and range of step sizes."""
    found = rows.where(task=DIGITS)
    return {b: {r: found.stat(ACCURACY, basis=b, steps=r).mean for r in RANGES} for b in DIAGONAL}


# Claims


def variances(found: dict[str, dict[Any, float]]) -> tuple[float, float]:
    """Of numbers by basis and step size: the variance of their means over step sizes, and over bases."""
    by_basis = [statistics.fmean(row.values()) for row in found.values()]
    by_step = [statistics.fmean(column) for column in zip(*(row.values() for row in found.values()), strict=True)]
    return statistics.pvariance(by_step), statistics.pvariance(by_basis)


def step_matters_more(kind: str) -> Any:
    """The variance of the mean log error over step sizes against that over bases."""

    def test(rows: Rows) -> Finding:
        steps, bases = variances(logs(rows, kind))
        return Finding(steps > bases, f"variance of log10 of the error: {steps:.3f} by step, {bases:.3f} by basis")

    return test


def steps_matter_when_trained(rows: Rows) -> Finding:
    found = accuracies(rows)
    steps, bases = variances(found)
    means = {name: statistics.fmean(row[name] for row in found.values()) for name in RANGES}
    evidence = f"variance of the accuracy: {steps:.5f} by range, {bases:.5f} by basis; by range {listed(means.items())}"
    return Finding(steps > bases, evidence)


def collapses(rows: Rows) -> Finding:
    inside = {NAMES[measure]: error(rows, "delay", measure, FITTING) for measure in WINDOWED}
    beyond = {NAMES[measure]: error(rows, "delay", measure, BEYOND) for measure in WINDOWED}
    evidence = f"window as long as the lag: {listed(inside.items())}; half as long: {listed(beyond.items())}"
    holds = max(inside.values()) <= 0.1 and min(beyond.values()) >= 0.5
    return Finding(holds, f"{evidence}; at most 0.1, and at least 0.5")


def windows_win_at_a_known_lag(rows: Rows) -> Finding:
    found = {measure: min(logs(rows, "delay")[measure].values()) for measure in ("legs", *WINDOWED)}
    evidence = listed((NAMES[measure], value) for measure, value in found.items())
    holds = max(found[measure] for measure in WINDOWED) <= found["legs"] - 0.5
    return Finding(holds, f"log10 of the error at the best step: {evidence}; at least 0.5 below LegS")


def legs_is_forgiving(rows: Rows) -> Finding:
    found = {NAMES[m]: max(errors.values()) - min(errors.values()) for m, errors in logs(rows, "delay").items()}
    return Finding(found["LegS"] == min(found.values()), f"spread of log10 of the error: {listed(found.items())}")


CLAIMS = (
    Claim(
        "The step size matters more than the basis, for delays",
        f"{PAPER}, section on timescales",
        step_matters_more("delay"),
    ),
    Claim("It does for reconstruction", f"{PAPER}, section on timescales", step_matters_more("reconstruction")),
    Claim(
        "It does for trained classifiers: the range of step sizes matters more than the initial basis",
        f"{PAPER} and {S4D}, ablations of the initialisation",
        steps_matter_when_trained,
    ),
    Claim("A delay beyond the window cannot be decoded", f"{PAPER}, delay task", collapses),
    Claim(
        "At a known lag, bases with a window do better than LegS", f"{PAPER}, delay task", windows_win_at_a_known_lag
    ),
    Claim("LegS depends least on the step size", f"{PAPER}, delay task", legs_is_forgiving, asserted=False),
)


# Showing


def markdown(rows: Rows) -> str:
    """Log errors of every basis by step size, for both tasks, and accuracies of the trained classifiers."""
    steps = sorted(rows.values("step"))
    parts = []
    for kind in KINDS:
        lines = [
            [NAMES[measure], *(next(iter(_shown(rows, kind, measure, step)), None) for step in steps)]
            for measure in MEASURES
        ]
        parts.append(f"{kind.capitalize()}:\n\n{grid(['basis', *(f'step {step:g} / lag' for step in steps)], lines)}")
    trained = rows.where(task=DIGITS)
    lines = [[b, *(trained.find(ACCURACY, basis=b, steps=steps) for steps in RANGES)] for b in DIAGONAL]
    header = ["initial basis of S4D", *(f"step sizes {steps}" for steps in RANGES)]
    accuracy = f"Digits, trained, accuracy:\n\n{grid(header, lines)}"
    return "\n\n".join(
        [
            *parts,
            accuracy,
            "Errors: log10 of the square error over the input's power. The paper draws curves.",
        ]
    )


def _shown(rows: Rows, kind: str, measure: str, step: float) -> list[float]:
    return [float(row[f"{kind}/log_error"]) for row in rows.where(measure=measure, step=step)]


def draw(rows: Rows, figure: Any) -> None:
    """Errors by step size, a curve per basis; accuracies of trained classifiers by range."""
    figure.set_size_inches(13, 4)
    *untrained, trained = figure.subplots(1, len(KINDS) + 1)
    found = rows.where(task=DIGITS)
    for basis in DIAGONAL:
        points = [(i, found.find(ACCURACY, basis=basis, steps=steps)) for i, steps in enumerate(RANGES)]
        line(trained, points, basis)
    trained.set(xlabel="initial step sizes", ylabel="accuracy", title="digits, trained S4D")
    trained.set_xticks(range(len(RANGES)), list(RANGES))
    legend(trained)
    for axes, kind in zip(untrained, KINDS, strict=True):
        for measure in MEASURES:
            points = sorted((row["step"], row[f"{kind}/error"]) for row in rows.where(measure=measure))
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=NAMES[measure])
        axes.axvline(FITTING, color="grey", linestyle=":")
        axes.set(xlabel="step size times lag", ylabel="square error", title=kind, yscale="log")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        legend(axes)


TABLE = Table(
    "hippo",
    "HiPPO bases by their step size",
    f"{PAPER}. A delay is read out by the best linear map and the past decoded by the basis, without training; digits, "
    "read pixel by pixel, train classifiers of two S4D layers. Dotted: where the window of LegT and FouT is as long as "
    "the lag.",
    cells,
    CLAIMS,
    markdown,
    draw,
)
main = entry(TABLE)

if __name__ == "__main__":
    sys.exit(main())
