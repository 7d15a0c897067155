"""A Systematic Analysis of Hybrid Linear Attention (arXiv:2507.06457): six linear mixers by their share of attention.

``python -m eval.tables.hybrid --scale laptop``
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from configs.tables import hybrid as recipe
from configs.tables.hybrid import FULL, MIXERS, PURE, TRANSFORMER
from eval.tables.cells import Cell, slug
from eval.tables.claims import Claim, Finding, listed, need_two
from eval.tables.command import Table, entry
from eval.tables.figures import legend, line
from eval.tables.rows import NotMeasured, Rows, Stat, exceeds, grid, mean
from eval.tables.training import Training, trainings

PAPER = "arXiv:2507.06457"
ACCURACY, EXACT, BITS = "recall/accuracy", "passkey/exact", "perplexity/bits_per_byte"

PAPER_RATIOS = ("24:1", "12:1", "6:1", "3:1", PURE)
PAPER_LM = {  # mean of six zero-shot accuracies, averaged over 340M and 1.3B
    "DeltaNet": (0.472, 0.476, 0.478, 0.475, 0.472),
    "GatedDeltaNet": (0.468, 0.478, 0.481, 0.478, 0.487),
    "GLA": (0.470, 0.474, 0.471, 0.478, 0.459),
    "HGRN": (0.488, 0.482, 0.486, 0.483, 0.459),
    "HGRN2": (0.488, 0.488, 0.494, 0.489, 0.486),
    "RetNet": (0.472, 0.472, 0.472, 0.468, 0.471),
}
PAPER_RULER = {  # 1.3B; RetNet and HGRN are left out as near zero
    "DeltaNet": (0.417, 0.352, 0.371, 0.426, 0.320),
    "GatedDeltaNet": (0.341, 0.352, 0.425, 0.436, 0.356),
    "GLA": (0.293, 0.288, 0.330, 0.332, 0.144),
    "HGRN2": (0.303, 0.368, 0.434, 0.395, 0.203),
}
PAPER_TRANSFORMER = (0.444 + 0.548) / 2, 0.423  # language score averaged over the two sizes, RULER at 1.3B


def cells(scale: str) -> list[Cell]:
    """Every model by task, learning rate and seed; at paper scale every model at both sizes."""
    if scale == "paper":
        return [paper_cell(size, *model) for size in recipe.PAPER_SIZES for model in models(recipe.PAPER_LAYERS)]
    size = recipe.SIZES[scale]
    return [
        cell
        for task in recipe.tasks()
        for mixers, ratios in (((TRANSFORMER,), (FULL,)), (MIXERS, size.ratios))
        for cell in trainings(
            functools.partial(recipe.experiment, scale),
            recipe.budget(scale, task).learning_rates,
            size.seeds,
            task=(task,),
            mixer=mixers,
            ratio=ratios,
        )
    ]


def models(ratios: dict[str, Any]) -> list[tuple[str, str]]:
    """Mixer and ratio of every model."""
    return [(TRANSFORMER, FULL), *((mixer, ratio) for mixer in MIXERS for ratio in ratios)]


def paper_cell(size: str, mixer: str, ratio: str) -> Cell:
    """A cell of the paper scale; one model answers all tasks."""
    name = slug(size, mixer, ratio)
    labels = {"task": size, "mixer": mixer, "ratio": ratio, "seed": 0}
    return Cell(name, labels, Training(recipe.paper(size, mixer, ratio, name)))


# Where a number stands. At paper scale all tasks are asked of one model, whose `task` is its size.


def of_task(rows: Rows, task: str) -> Rows:
    """The rows that hold a task's numbers, with the metric that chooses their learning rates."""
    tasks = rows.values("task")
    large = [size for size in reversed(recipe.PAPER_SIZES) if size in tasks]
    chosen = task if task in tasks or not large else large[0]
    select = "valid/loss" if task in ("stdlib", "shakespeare") or chosen in large else "valid/accuracy"
    return rows.where(select=select, task=chosen)


def pairs(rows: Rows) -> dict[int, str]:
    """The metrics of recall by number of pairs.

    Raises:
      NotMeasured: there are fewer than two numbers of pairs.
    """
    found = of_task(rows, "mqar").slices(f"{ACCURACY}@")
    need_two("numbers of pairs", list(found))
    return found


def lightest(rows: Rows) -> str:
    """The ratio with the fewest full-attention blocks, but not none."""
    found = [ratio for ratio in rows.values("ratio") if ratio not in (PURE, FULL)]
    if not found:
        raise NotMeasured("a hybrid")
    return max(found, key=linear_blocks)


def linear_blocks(ratio: str) -> int:
    """To one full block."""
    return int(ratio.split(":")[0])


def hardest(rows: Rows, ratio: str) -> dict[str, Stat]:
    """Recall at the most pairs of every mixer at a ratio."""
    found, metric = of_task(rows, "mqar"), list(pairs(rows).values())[-1]
    return {mixer: found.stat(metric, mixer=mixer, ratio=ratio) for mixer in MIXERS}


# Claims


def falls(rows: Rows) -> Finding:
    found, by_pairs = of_task(rows, "mqar"), pairs(rows)
    easy, *_, hard = by_pairs.values()
    lost = {}
    for mixer in MIXERS:
        few, many = (found.stat(metric, mixer=mixer, ratio=PURE) for metric in (easy, hard))
        lost[mixer] = few.mean - many.mean
    evidence = (
        f"lost from {min(by_pairs)} to {max(by_pairs)} pairs: {listed(lost.items())}; mean at least 0.1, none gains"
    )
    return Finding(mean(lost.values()) >= 0.1 and min(lost.values()) > -0.02, evidence)


def delta_rules_hold(rows: Rows) -> Finding:
    pure = hardest(rows, PURE)
    ahead = all(exceeds(pure[mixer], pure["RetNet"], 0.05) for mixer in ("DeltaNet", "GatedDeltaNet"))
    shown = listed((mixer, pure[mixer]) for mixer in ("DeltaNet", "GatedDeltaNet", "RetNet"))
    return Finding(ahead, f"at {max(pairs(rows))} pairs: {shown}; both at least 0.05 above RetNet")


def one_layer_lifts(rows: Rows) -> Finding:
    return lift(hardest(rows, PURE), hardest(rows, lightest(rows)), transformer(rows, "mqar"), lightest(rows))


def one_layer_lifts_passkey(rows: Rows) -> Finding:
    found = of_task(rows, "passkey")
    pure, hybrid = (
        {mixer: found.stat(EXACT, mixer=mixer, ratio=ratio) for mixer in MIXERS} for ratio in (PURE, lightest(rows))
    )
    return lift(pure, hybrid, transformer(rows, "passkey"), lightest(rows))


def transformer(rows: Rows, task: str) -> Stat:
    """The score of the Transformer."""
    metric = list(pairs(rows).values())[-1] if task == "mqar" else EXACT
    return of_task(rows, task).stat(metric, mixer=TRANSFORMER, ratio=FULL)


def lift(pure: dict[str, Stat], hybrid: dict[str, Stat], full: Stat, ratio: str) -> Finding:
    """Whether the hybrids close half of the gap between the pure models and the Transformer, on average."""
    low, high = mean(stat.mean for stat in pure.values()), mean(stat.mean for stat in hybrid.values())
    gap = full.mean - low
    shown = listed((mixer, f"{pure[mixer].mean:.3f} to {hybrid[mixer].mean:.3f}") for mixer in MIXERS)
    evidence = f"pure to {ratio}: {shown}; mean {low:.3f} to {high:.3f}, Transformer {full}"
    if gap < 0.1:
        return Finding(False, f"{evidence}; no gap of 0.1 to close, so the task does not test the claim")
    return Finding(high - low >= 0.5 * gap, f"{evidence}; {(high - low) / gap:.0%} of the gap closed, at least half")


def loss_moves_little(rows: Rows) -> Finding:
    found, spread = of_task(rows, "stdlib"), {}
    ratios = [ratio for ratio in found.values("ratio") if ratio != FULL]
    need_two("ratios", ratios)
    for mixer in MIXERS:
        bits = [found.stat(BITS, mixer=mixer, ratio=ratio).mean for ratio in ratios]
        spread[mixer] = (max(bits) - min(bits)) / mean(bits)
    shown = ", ".join(f"{mixer} {value:.1%}" for mixer, value in spread.items())
    return Finding(
        max(spread.values()) <= 0.05, f"spread of bits per byte over {', '.join(ratios)}: {shown}; at most 5%"
    )


def best_pure_is_best_hybrid(rows: Rows) -> Finding:
    best = []
    for ratio in (PURE, lightest(rows)):
        scores = hardest(rows, ratio)
        best.append(max(scores, key=lambda mixer: scores[mixer].mean))
    return Finding(best[0] == best[1], f"best recall: {best[0]} among pure models, {best[1]} at {lightest(rows)}")


CLAIMS = (
    Claim(
        "Pure linear recall falls once pairs exceed state capacity", "recall by ratio; capacity argument: ours", falls
    ),
    Claim("Delta rules hold longer than RetNet", f"{PAPER}, recall of pure models", delta_rules_hold),
    Claim("One full-attention layer lifts recall sharply", f"{PAPER}, recall by ratio", one_layer_lifts),
    Claim("It lifts passkey retrieval too", f"{PAPER}, recall by ratio", one_layer_lifts_passkey, asserted=False),
    Claim("Language-model loss moves little with the ratio", f"{PAPER}, language scores by ratio", loss_moves_little),
    Claim("The best pure mixer is the best hybrid", f"{PAPER} says no", best_pure_is_best_hybrid, asserted=False),
)


# Showing


def markdown(rows: Rows) -> str:
    """Every model, ours beside the paper's at its ratios; what one side lacks is a dash."""
    metrics = list(of_task(rows, "mqar").slices(f"{ACCURACY}@").items())
    hard = metrics[-1:]
    columns = [("mqar", "MQAR", ACCURACY), *(("mqar", f"{n} pairs", metric) for n, metric in hard)]
    columns += [("passkey", "passkey", EXACT), ("stdlib", "bits/byte, stdlib", BITS)]
    if "shakespeare" in rows.values("task"):
        columns.append(("shakespeare", "bits/byte, Shakespeare", BITS))
    own = [ratio for ratio in rows.values("ratio") if ratio not in (PURE, FULL)]
    order = sorted({*own, *PAPER_RATIOS[:-1]}, key=linear_blocks, reverse=True)
    lines = []
    for mixer, ratio in [(TRANSFORMER, FULL), *((mixer, ratio) for mixer in MIXERS for ratio in [PURE, *order])]:
        ours = [of_task(rows, task).find(metric, mixer=mixer, ratio=ratio) for task, _, metric in columns]
        theirs = paper_numbers(mixer, ratio)
        if any(value is not None for value in (*ours, *theirs)):
            lines.append([mixer, ratio, *ours, *theirs])
    header = ["mixer", "linear:full", *(name for _, name, _ in columns), "paper: RULER, 1.3B", "paper: language score"]
    return grid(header, lines)


def paper_numbers(mixer: str, ratio: str) -> tuple[float | None, float | None]:
    """RULER at 1.3B, and the language score averaged over both sizes."""
    if mixer == TRANSFORMER:
        return PAPER_TRANSFORMER[1], PAPER_TRANSFORMER[0]
    if ratio not in PAPER_RATIOS:
        return None, None
    column = PAPER_RATIOS.index(ratio)
    return (PAPER_RULER[mixer][column] if mixer in PAPER_RULER else None), PAPER_LM[mixer][column]


def draw(rows: Rows, figure: Any) -> None:
    """Recall by number of pairs, one panel per ratio; bits per byte by ratio."""
    ratios = [ratio for ratio in rows.values("ratio") if ratio != FULL]
    figure.set_size_inches(4 * (len(ratios) + 1), 3.8)
    panels = figure.subplots(1, len(ratios) + 1, squeeze=False)[0]
    found = of_task(rows, "mqar")
    by_pairs = found.slices(f"{ACCURACY}@")
    for axes, ratio in zip(panels, ratios, strict=False):
        for mixer, of in [*((mixer, ratio) for mixer in MIXERS), (TRANSFORMER, FULL)]:
            style = {"color": "black", "linestyle": "--"} if mixer == TRANSFORMER else {}
            line(
                axes, [(n, found.find(metric, mixer=mixer, ratio=of)) for n, metric in by_pairs.items()], mixer, **style
            )
        axes.set(xlabel="key-value pairs", ylabel="MQAR accuracy", ylim=(-0.02, 1.02), title=f"linear:full {ratio}")
        axes.set_xscale("log", base=2)
    legend(panels[0])
    text = of_task(rows, "stdlib")
    for mixer in MIXERS:
        line(panels[-1], [(i, text.find(BITS, mixer=mixer, ratio=ratio)) for i, ratio in enumerate(ratios)], mixer)
    full = text.find(BITS, mixer=TRANSFORMER, ratio=FULL)
    if full is not None:
        panels[-1].axhline(full.mean, color="black", linestyle="--")
    panels[-1].set_xticks(range(len(ratios)), ratios)
    panels[-1].set(xlabel="linear:full", ylabel="held-out bits per byte", title="Language model (dashed: Transformer)")


TABLE = Table(
    "hybrid",
    "Hybrid linear attention: six linear mixers by their share of full attention",
    f"A Systematic Analysis of Hybrid Linear Attention, {PAPER}. The paper's models are larger and answer other "
    "questions; what is compared is the order, not the numbers.",
    cells,
    CLAIMS,
    markdown,
    draw,
)
main = entry(TABLE)

if __name__ == "__main__":
    sys.exit(main())
