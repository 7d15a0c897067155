"""The table of in-context regression: one layer of linear attention against one step of gradient descent.

``python -m eval.tables.icl --scale laptop``
"""

from __future__ import annotations

import sys
from typing import Any

from configs.tables import _icl as recipe
from eval.tables.cells import Cell, slug
from eval.tables.claims import Claim, Finding, need_two
from eval.tables.command import Table, entry
from eval.tables.figures import legend
from eval.tables.rows import NotMeasured, Row, Rows, grid

PAPER = "arXiv:2307.03576"
OURS = f"{PAPER}; constants: our algebra"
LOSS, STEP, MATRIX, RIDGE = "icl/loss", "icl/step", "icl/matrix", "icl/ridge"
BEST, CLOSED, CLOSED_STEP = "icl/step_loss", "icl/closed", "icl/closed_step"


def cells(scale: str) -> list[Cell]:
    """The grid of examples and noise with white inputs, and the coloured ones."""
    size = recipe.SIZES[scale]
    entries = [("white", examples, noise) for examples in size.examples for noise in size.noise]
    entries += [(inputs, *recipe.MIDDLE) for inputs in recipe.INPUTS if inputs != "white"]
    found = []
    for inputs, examples, noise in entries:
        for seed in range(size.seeds):
            labels = {"inputs": inputs, "examples": examples, "noise": noise, "seed": seed}
            name = slug(inputs, f"n{examples}", f"noise{noise:g}", f"s{seed}")
            found.append(Cell(name, labels, recipe.job(scale, inputs, examples, noise, seed)))
    return found


def measured(rows: Rows, **labels: str | float) -> list[Row]:
    """The rows with these labels that have a loss.

    Raises:
      NotMeasured: there is none.
    """
    found = [row for row in rows.where(None, **labels) if LOSS in row]
    if not found:
        raise NotMeasured(", ".join(f"{name}={value}" for name, value in labels.items()))
    return found


def number(row: Row, metric: str) -> float:
    """A metric of a row."""
    return float(row[metric])


# Claims


def loss_is_least(rows: Rows) -> Finding:
    excess = [number(row, LOSS) / number(row, BEST) - 1 for row in measured(rows)]
    need_two("cells", excess)
    worst = max(excess, key=abs)
    return Finding(abs(worst) <= 0.01, f"excess over the best step on {len(excess)} cells: at most {worst:+.2%}; 1%")


def formula_holds(rows: Rows) -> Finding:
    off = [number(row, BEST) / number(row, CLOSED) - 1 for row in measured(rows)]
    need_two("cells", off)
    worst = max(off, key=abs)
    return Finding(abs(worst) <= 0.05, f"measured over expected loss of the best step: at most {worst:+.2%} off; 5%")


def step_size_follows(rows: Rows) -> Finding:
    off = [number(row, STEP) / number(row, CLOSED_STEP) - 1 for row in measured(rows, inputs="white")]
    need_two("cells", off)
    worst = max(off, key=abs)
    return Finding(abs(worst) <= 0.03, f"step sizes of {len(off)} cells: at most {worst:+.2%} off; 3%")


def matrix_is_a_multiple_of_one(rows: Rows) -> Finding:
    found = [number(row, MATRIX) for row in measured(rows, inputs="white")]
    need_two("cells", found)
    return Finding(max(found) <= 0.2, f"relative distance on {len(found)} cells: {max(found):.3f} at most; 0.2")


def preconditioner_emerges(rows: Rows) -> Finding:
    coloured = [row for inputs in recipe.INPUTS if inputs != "white" for row in measured(rows, inputs=inputs)]
    found = [number(row, MATRIX) for row in coloured]
    shown = ", ".join(f"{row['inputs']} {number(row, MATRIX):.3f}" for row in coloured)
    return Finding(max(found) <= 0.2, f"relative distance to the best preconditioner: {shown}; 0.2")


def ridge_is_better(rows: Rows) -> Finding:
    gaps = [1 - number(row, RIDGE) / number(row, LOSS) for row in measured(rows)]
    need_two("cells", gaps)
    return Finding(min(gaps) > 0, f"ridge regression is better by {min(gaps):.1%} to {max(gaps):.1%}")


def other_lengths(rows: Rows) -> Finding:
    middle = measured(rows, inputs="white", examples=recipe.MIDDLE[0], noise=recipe.MIDDLE[1])[0]
    lengths = rows.slices(f"{LOSS}@")
    nothing = recipe.DIM + recipe.MIDDLE[1]
    found = {length: number(middle, metric) for length, metric in lengths.items()}
    off = {length: value / number(middle, f"{CLOSED}@{length}") - 1 for length, value in found.items()}
    if not found:
        raise NotMeasured("prompts of other lengths")
    shown = ", ".join(f"{length} examples {value:.2f} ({off[length]:+.1%} off)" for length, value in found.items())
    longest = found[max(found)]
    holds = all(abs(value) <= 0.1 for value in off.values()) and longest > nothing
    return Finding(holds, f"{shown}; the longest above {nothing:g}, which predicting 0 costs, and all within 10%")


CLAIMS = (
    Claim("The trained layer's loss is that of one step of gradient descent", PAPER, loss_is_least),
    Claim("That loss is the closed form", OURS, formula_holds),
    Claim("The learned step size is 1 / (n + d + 1 + noise)", OURS, step_size_follows),
    Claim("With white inputs the learned matrix is a multiple of one", PAPER, matrix_is_a_multiple_of_one),
    Claim("With coloured inputs it is a preconditioner", OURS, preconditioner_emerges),
    Claim("Ridge regression stays better", "Bayes", ridge_is_better),
    Claim("One step does not carry over to prompts of other lengths", OURS, other_lengths),
)


# Showing


def markdown(rows: Rows) -> str:
    """Loss and step size beside the closed form."""
    lines = []
    for row in rows:
        labels = [row["inputs"], f"{row['examples']:g}", f"{row['noise']:g}", f"{row['seed']:g}"]
        metrics = (LOSS, BEST, CLOSED, RIDGE, STEP, CLOSED_STEP, MATRIX)
        found = [row.get(metric) for metric in metrics]
        steps = [None if value is None else f"{value:.4f}" for value in found[4:6]]
        lines.append([*labels, *found[:4], *steps, found[6]])
    losses = ["learned loss", "best step, same prompts", "closed form", "ridge"]
    header = ["inputs", "n", "noise", "seed", *losses, "learned step", "closed form", "matrix distance"]
    return (
        f"{grid(header, lines)}\n\nFive dimensions. The paper proves and prints no numbers; the closed forms are our "
        "algebra. Losses are square errors of a noisy label; steps are means of a matrix's diagonal."
    )


def draw(rows: Rows, figure: Any) -> None:
    """Learned loss and step size as dots on the curves of the closed form."""
    figure.set_size_inches(9, 4)
    losses, steps = figure.subplots(1, 2)
    white = rows.where(inputs="white")
    for colour, noise in enumerate(white.values("noise")):
        found = sorted(white.where(noise=noise), key=lambda row: row["examples"])
        x = [row["examples"] for row in found]
        style = {"color": f"C{colour}"}
        for axes, learned, closed in ((losses, LOSS, CLOSED), (steps, STEP, CLOSED_STEP)):
            axes.plot(x, [row.get(closed) for row in found], "-", **style)
            axes.plot(x, [row.get(learned) for row in found], "o", label=f"learned, noise {noise:g}", **style)
        losses.plot(x, [row.get(RIDGE) for row in found], ":", **style)
    losses.set(xlabel="examples in the prompt", ylabel="square error", title="Lines: one step; dotted: ridge")
    steps.set(xlabel="examples in the prompt", ylabel="step size", title="Lines: 1 / (n + d + 1 + noise)", yscale="log")
    for axes in (losses, steps):
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        legend(axes)


TABLE = Table(
    "icl",
    "Linear attention learns one step of gradient descent",
    f"{PAPER}: the least population loss of one layer of linear attention on linear regression in context.",
    cells,
    CLAIMS,
    markdown,
    draw,
)
main = entry(TABLE)

if __name__ == "__main__":
    sys.exit(main())
