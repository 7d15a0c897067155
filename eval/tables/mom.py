"""MoM: Linear Sequence Modeling with Mixture-of-Memories (arXiv:2502.13685): routed memories against one wider state.

``python -m eval.tables.mom --scale laptop``
"""

from __future__ import annotations

import sys
from typing import Any

from configs.tables import mom as recipe
from configs.tables.mom import MATCHED, VARIANTS, Inner, Memories, Variant
from eval.tables.cells import Cell, slug
from eval.tables.claims import Claim, Finding, listed, need_two
from eval.tables.command import Table, entry
from eval.tables.figures import legend, line
from eval.tables.rows import Rows, Stat, exceeds, grid
from eval.tables.training import Training

PAPER = "arXiv:2502.13685"
ACCURACY, LOAD = "recall/accuracy", "stat/load_max"
MARGIN = 0.02
ABOVE = f"at least {MARGIN} and two standard errors above"

PAPER_SCORES: dict[Variant, tuple[float, float]] = {  # 380M: means of six recall and six common-sense tasks
    Memories(): (27.59, 42.10),
    Memories(balance_weight=1e-3): (28.16, 41.97),
    Memories(balance_weight=0.0): (27.23, 41.58),
    Memories(shared=False): (26.06, 40.38),
    Inner(): (24.78, 41.44),
}
PAPER_WIDER = "One expanded state against MoM in the paper, recall: 26.32 (550M, Gated DeltaNet) against 28.16 (444M)."
PAPER_ACTIVATED = "At equal activated parameters (400M): 24.78 against 26.51 recall, 41.44 against 41.50 common sense."


def cells(scale: str) -> list[Cell]:
    """Every variant by learning rate and seed; at paper scale all variants at 380M, the two main ones at 1.3B."""
    if scale == "paper":
        small, large = recipe.PAPER_SIZES
        return [paper_cell(small, v) for v in VARIANTS] + [paper_cell(large, v) for v in (Memories(), Inner())]
    size = recipe.SIZES[scale]
    return [
        small_cell(scale, variant, rate, seed)
        for variant in VARIANTS
        for rate in size.budget.learning_rates
        for seed in range(size.seeds)
    ]


def small_cell(scale: str, variant: Variant, rate: float, seed: int) -> Cell:
    """A cell of the scales tiny, laptop and gpu."""
    name = slug(label(variant), rate, f"s{seed}")
    labels = {"variant": label(variant), "size": scale, "learning_rate": rate, "seed": seed}
    return Cell(name, labels, Training(recipe.experiment(scale, variant, rate, seed, name)))


def paper_cell(size: str, variant: Variant) -> Cell:
    """A cell of the paper scale."""
    name = slug(size, label(variant))
    return Cell(
        name, {"variant": label(variant), "size": size, "seed": 42}, Training(recipe.paper(size, variant, name))
    )


def label(variant: Variant) -> str:
    """A variant in words."""
    if isinstance(variant, Inner):
        return "inner mixer" if variant.match == "nothing" else f"inner mixer, equal {variant.match}"
    shared = "shared" if variant.shared else "no shared"
    routed = "" if variant.top_k == Memories.top_k else f", top {variant.top_k}"
    return f"MoM {variant.memories}{routed}, {shared}, balance {variant.balance_weight:g}"


# Where a number stands


def of_smallest(rows: Rows) -> Rows:
    """The rows of one size of models: the paper scale has two."""
    sizes = rows.values("size")
    return rows.where(size=sizes[0]) if sizes else rows


def pairs(rows: Rows) -> dict[int, str]:
    """The metrics of recall by number of pairs.

    Raises:
      NotMeasured: there are fewer than two numbers of pairs.
    """
    found = rows.slices(f"{ACCURACY}@")
    need_two("numbers of pairs", list(found))
    return found


def hardest(rows: Rows, variant: Variant) -> Stat:
    """Recall at the most pairs."""
    return of_smallest(rows).stat(list(pairs(rows).values())[-1], variant=label(variant))


# Claims


def beats(match: recipe.Match) -> Any:
    """MoM against the inner mixer that is equal in `match`, at the most pairs."""

    def test(rows: Rows) -> Finding:
        routed, wide = hardest(rows, Memories()), hardest(rows, Inner(match))
        evidence = f"at {max(pairs(rows))} pairs: MoM {routed}, one state {wide}; {ABOVE}"
        if wide.mean > 0.95:
            return Finding(False, f"{evidence}; the pairs do not exceed one state, so the task does not test the claim")
        return Finding(exceeds(routed, wide, MARGIN), evidence)

    return test


def shared_memory_matters(rows: Rows) -> Finding:
    found = {"with": hardest(rows, Memories()), "without": hardest(rows, Memories(shared=False))}
    evidence = f"at {max(pairs(rows))} pairs: {listed(found.items())}; the first {ABOVE}"
    return Finding(exceeds(found["with"], found["without"], MARGIN), evidence)


def load_skews(rows: Rows) -> Finding:
    found = of_smallest(rows)
    free = found.stat(LOAD, variant=label(Memories(balance_weight=0.0)))
    held = found.stat(LOAD, variant=label(Memories()))
    evidence = f"largest share over an even one: {free} without, {held} with weight 0.01; at least 0.25 above"
    return Finding(exceeds(free, held, 0.25), evidence)


def more_memories_help(rows: Rows) -> Finding:
    found = {number: hardest(rows, Memories(memories=number)) for number in (1, 2, 4, 8)}
    ordered = [stat.mean for stat in found.values()]
    shown = listed((f"{number} memories", stat) for number, stat in found.items())
    return Finding(ordered == sorted(ordered), f"at {max(pairs(rows))} pairs: {shown}")


CLAIMS = (
    Claim(
        "Routed memories with a shared one beat one wider state of as many bytes on recall beyond its capacity",
        f"{PAPER}, one expanded state against MoM",
        beats("state bytes"),
    ),
    Claim("They beat one of as many parameters", f"{PAPER}, main table", beats("parameters"), asserted=False),
    Claim(
        "They beat one of as many activated parameters",
        f"{PAPER}, equal activated parameters",
        beats("activated parameters"),
        asserted=False,
    ),
    Claim("Removing the shared memory hurts", f"{PAPER}, ablation", shared_memory_matters),
    Claim("Without the auxiliary loss the load skews", f"{PAPER}, ablation of the loss; our measure", load_skews),
    Claim("More memories help", f"{PAPER}, number of memories", more_memories_help, asserted=False),
)


# Showing


def markdown(rows: Rows) -> str:
    """Every variant, ours beside the paper's."""
    found = of_smallest(rows)
    hard = list(found.slices(f"{ACCURACY}@").items())[-1:]
    columns = [("recall", ACCURACY), *((f"{n} pairs", metric) for n, metric in hard), ("largest load", LOAD)]
    lines = []
    for variant in VARIANTS:
        ours = [found.find(metric, variant=label(variant)) for _, metric in columns]
        costs = [found.find(metric, variant=label(variant)) for metric in MATCHED.values()]
        counts = [None if cost is None else f"{cost.mean:,.0f}" for cost in costs]
        lines.append([label(variant), *ours, *counts, *paper_scores(variant)])
    header = ["variant", *(name for name, _ in columns), *MATCHED, "paper: recall, 380M", "paper: common sense"]
    return f"{grid(header, lines)}\n\n{PAPER_WIDER} {PAPER_ACTIVATED}"


def paper_scores(variant: Variant) -> list[str | None]:
    """Recall and common sense at the smaller size, in percent."""
    scores = PAPER_SCORES.get(variant)
    return [None, None] if scores is None else [f"{score:.2f}" for score in scores]


def draw(rows: Rows, figure: Any) -> None:
    """Recall by number of pairs, by number of memories, and the load by weight of the auxiliary loss."""
    found = of_smallest(rows)
    figure.set_size_inches(14, 4)
    by_pairs, by_number, by_weight = figure.subplots(1, 3)
    metrics = found.slices(f"{ACCURACY}@")
    for variant in (Memories(), Memories(shared=False), Inner(), *(Inner(match) for match in MATCHED)):
        points = [(n, found.find(metric, variant=label(variant))) for n, metric in metrics.items()]
        line(by_pairs, points, label(variant))
    by_pairs.set(xlabel="key-value pairs", ylabel="MQAR accuracy", ylim=(-0.02, 1.02), title="Recall")
    by_pairs.set_xscale("log", base=2)
    legend(by_pairs)
    hard = list(metrics.values())[-1:]
    for metric in hard:
        numbers = (1, 2, 4, 8)
        points = [(n, found.find(metric, variant=label(Memories(memories=n)))) for n in numbers]
        line(by_number, points, "MoM")
        by_number.set_xticks(numbers)
    most = max(metrics, default=0)
    by_number.set(xlabel="memories", ylabel=f"MQAR accuracy at {most} pairs", title="Number of memories")
    weights = (0.0, 1e-3, 1e-2, 1e-1)
    points = [(i, found.find(LOAD, variant=label(Memories(balance_weight=w)))) for i, w in enumerate(weights)]
    line(by_weight, points, "MoM")
    by_weight.axhline(1.0, color="black", linestyle="--")
    by_weight.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
    by_weight.set(xlabel="weight of the balance loss", ylabel="largest share of a memory (1: even)", title="Load")


TABLE = Table(
    "mom",
    "Mixture of memories: routed states against one wider state",
    f"MoM: Linear Sequence Modeling with Mixture-of-Memories, {PAPER}. The paper's models are larger and answer other "
    "questions; what is compared is the order, not the numbers. The paper's main table fits a balance weight of 1e-3, "
    "its config says 1e-2.",
    cells,
    CLAIMS,
    markdown,
    draw,
)
main = entry(TABLE)

if __name__ == "__main__":
    sys.exit(main())
