"""LMUFormer (arXiv:2402.04882): what its embedding and its MLP add to an LMU, and what spikes cost.

``python -m eval.tables.lmuformer --scale laptop``
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from configs.tables import lmuformer as recipe
from configs.tables.lmuformer import EMBEDDED, LMU, LMUFORMER, SPIKING, VARIANTS
from eval.tables.cells import Cell
from eval.tables.claims import Claim, Finding, listed
from eval.tables.command import Table, entry
from eval.tables.figures import line
from eval.tables.rows import Rows, Stat, exceeds, grid
from eval.tables.training import trainings

PAPER = "arXiv:2402.04882"
ACCURACY, PARAMETERS = "classification/accuracy", "model/parameters"
MARGIN, LOST = 0.02, 0.05

PAPER_MNIST = {LMUFORMER: 98.55, SPIKING: 97.92}
"""Accuracy in percent on permuted MNIST."""
PAPER_SPEECH = {LMU: "≈76", EMBEDDED: "≈89", LMUFORMER: "96.53", SPIKING: "96.12"}
"""The same on Speech Commands; the first two are second hand and rounded."""
NUMBERS = (
    "The paper's numbers are accuracies in percent on other data; of its ablation on speech the first two are second "
    "hand and rounded. Not tested here: accuracy by prefix, and that a model trained in parallel runs as a recurrence "
    "(a law of every mixer)."
)


def cells(scale: str) -> list[Cell]:
    """Every variant by learning rate and seed."""
    size = recipe.SIZES[scale]
    return trainings(
        functools.partial(recipe.experiment, scale), size.budget.learning_rates, size.seeds, variant=VARIANTS
    )


def accuracies(rows: Rows, *variants: str) -> dict[str, Stat]:
    """Share of right labels on test pictures."""
    return {variant: rows.stat(ACCURACY, variant=variant) for variant in variants}


# Claims


def parts_add_up(rows: Rows) -> Finding:
    found = accuracies(rows, LMU, LMUFORMER)
    evidence = f"{listed(found.items())}; at least {MARGIN} and two standard errors above"
    return Finding(exceeds(found[LMUFORMER], found[LMU], MARGIN), evidence)


def in_order(rows: Rows) -> Finding:
    found = accuracies(rows, LMU, EMBEDDED, LMUFORMER)
    scores = [stat.mean for stat in found.values()]
    return Finding(scores == sorted(scores), listed(found.items()))


def spikes_cost_little(rows: Rows) -> Finding:
    found = accuracies(rows, LMUFORMER, SPIKING)
    lost = found[LMUFORMER].mean - found[SPIKING].mean
    return Finding(lost <= LOST, f"{listed(found.items())}; at most {LOST} lost (published: 0.004 to 0.006)")


CLAIMS = (
    Claim("LMUFormer is better than an LMU alone", f"{PAPER}, ablation on speech, second hand", parts_add_up),
    Claim("Embedding and MLP each add", f"{PAPER}, ablation on speech, second hand", in_order, asserted=False),
    Claim("Spikes cost little", f"{PAPER}, speech and permuted MNIST", spikes_cost_little),
)


# Showing


def markdown(rows: Rows) -> str:
    """Every variant, ours beside the paper's."""
    lines = []
    for variant in VARIANTS:
        count, paper = rows.find(PARAMETERS, variant=variant), PAPER_MNIST.get(variant)
        shown = [count and f"{count.mean:,.0f}", paper and f"{paper:.2f}", PAPER_SPEECH[variant]]
        lines.append([variant, rows.find(ACCURACY, variant=variant), *shown])
    header = ["model", "test accuracy", "parameters", "paper: permuted MNIST", "paper: speech"]
    return f"{grid(header, lines)}\n\n{NUMBERS}"


def draw(rows: Rows, figure: Any) -> None:
    """Accuracy by variant."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    for i, variant in enumerate(VARIANTS):
        line(axes, [(i, rows.find(ACCURACY, variant=variant))], variant, linestyle="none")
    axes.set_xticks(range(len(VARIANTS)), VARIANTS)
    axes.set(xlabel="model", ylabel="test accuracy", title="Digits, pixel by pixel")
    axes.grid(alpha=0.3)


TABLE = Table(
    "lmuformer",
    "LMUFormer: what embedding, MLP and spikes do to a Legendre memory",
    f"LMUFormer, {PAPER}. Digits instead of speech: what is compared is the order, not the numbers.",
    cells,
    CLAIMS,
    markdown,
    draw,
)
main = entry(TABLE)

if __name__ == "__main__":
    sys.exit(main())
