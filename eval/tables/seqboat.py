"""SeqBoat (arXiv:2306.11197): attention on the tokens that a router activates, against none and against a window.

``python -m eval.tables.seqboat --scale laptop``
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from configs.tables import seqboat as recipe
from configs.tables.seqboat import AVERAGE, COPYING, MIXERS, RECALL, SEQBOAT, WINDOW
from eval.tables.cells import Cell
from eval.tables.claims import Claim, Finding, listed, need_two
from eval.tables.command import Table, entry
from eval.tables.figures import legend, line
from eval.tables.rows import NotMeasured, Rows, Stat, exceeds, grid
from eval.tables.training import trainings

PAPER = "arXiv:2306.11197"
BY_PAIRS, BY_LENGTH = "recall/accuracy@", "lengths/accuracy@"
ACTIVATION, SPREAD = "stat/activation", "stat/activation_spread"
PARAMETERS, BYTES = "model/parameters", "model/state_bytes"
MARGIN, EDGE, APART = 0.05, 0.02, 0.05
NUMBERS = (
    "The paper's numbers are of other tasks: about 1.02 bits per character on enwik8, with 39 million parameters. "
    "Its table of the Long Range Arena and its activation times could not be read, and are left out. That time falls "
    "with the share of active tokens is not tested here: a cell's seconds include compilation."
)


def cells(scale: str) -> list[Cell]:
    """Every task by mixer, learning rate and seed."""
    return [
        cell
        for task in recipe.tasks()
        for cell in trainings(
            functools.partial(recipe.experiment, scale),
            recipe.budget(scale, task).learning_rates,
            recipe.SIZES[scale].seeds,
            task=(task,),
            mixer=MIXERS,
        )
    ]


def hardest(rows: Rows, task: str) -> dict[str, Stat]:
    """Accuracy of every mixer: at the most pairs, or on selective copying.

    Raises:
      NotMeasured: a mixer is missing.
    """
    found = rows.where(task=task)
    metrics = list(found.slices(BY_PAIRS if task == RECALL else BY_LENGTH).values())
    if not metrics:
        raise NotMeasured(f"accuracy on {task}")
    return {mixer: found.stat(metrics[-1], mixer=mixer) for mixer in MIXERS}


def activation(rows: Rows, metric: str = ACTIVATION) -> dict[str, Stat]:
    """Share of active tokens, or another metric of it, a mean over layers, by task."""
    return {task: rows.where(task=task).stat(metric, mixer=SEQBOAT) for task in recipe.tasks()}


# Claims


def attention_helps(rows: Rows) -> Finding:
    found = {task: hardest(rows, task) for task in recipe.tasks()}
    gains = {task: exceeds(scores[SEQBOAT], scores[AVERAGE], MARGIN) for task, scores in found.items()}
    keeps = all(scores[SEQBOAT].mean >= scores[AVERAGE].mean - MARGIN for scores in found.values())
    shown = "; ".join(f"{task}: {listed(list(scores.items())[:2])}" for task, scores in found.items())
    return Finding(any(gains.values()) and keeps, f"{shown}; {MARGIN} above on a task, not as much below on any")


def window_is_no_better(rows: Rows) -> Finding:
    found = {task: hardest(rows, task) for task in recipe.tasks()}
    holds = all(scores[SEQBOAT].mean >= scores[WINDOW].mean - MARGIN for scores in found.values())
    shown = "; ".join(f"{task}: {listed((m, scores[m]) for m in (SEQBOAT, WINDOW))}" for task, scores in found.items())
    return Finding(holds, f"{shown}; not {MARGIN} below on any task")


def settles_inside(rows: Rows) -> Finding:
    found, share = activation(rows, SPREAD), activation(rows)
    inside = all(spread.mean >= 4 * EDGE * (1 - EDGE) for spread in found.values())
    evidence = f"share a of active tokens: {listed(share.items())}; 4 a (1 - a), a mean over layers: "
    return Finding(inside, f"{evidence}{listed(found.items())}; at least {4 * EDGE * (1 - EDGE):.2f}")


def differs_by_task(rows: Rows) -> Finding:
    found = activation(rows)
    need_two("tasks", list(found))
    low, high = sorted(found.values())[0], sorted(found.values())[-1]
    return Finding(exceeds(high, low, APART), f"share of active tokens: {listed(found.items())}; {APART} apart")


CLAIMS = (
    Claim("Attention on active tokens is no worse than the moving average alone, and helps", PAPER, attention_helps),
    Claim("It is no worse than attention on all tokens within as many keys", PAPER, window_is_no_better),
    Claim("The share of active tokens settles away from 0 and 1", PAPER, settles_inside),
    Claim("It differs by task", PAPER, differs_by_task, asserted=False),
)


# Showing


def markdown(rows: Rows) -> str:
    """Every mixer by task."""
    recalled, copied = rows.where(task=RECALL), rows.where(task=COPYING)
    columns = {f"MQAR, {pairs} pairs": (recalled, metric) for pairs, metric in recalled.slices(BY_PAIRS).items()}
    columns |= {f"copying, {length} tokens": (copied, m) for length, m in copied.slices(BY_LENGTH).items()}
    columns |= {"active, MQAR": (recalled, ACTIVATION), "active, copying": (copied, ACTIVATION)}
    lines = []
    for mixer in MIXERS:
        counts = [recalled.find(metric, mixer=mixer) for metric in (PARAMETERS, BYTES)]
        scores = [found.find(metric, mixer=mixer) for found, metric in columns.values()]
        lines.append([mixer, *scores, *(stat and f"{stat.mean:,.0f}" for stat in counts)])
    return f"{grid(['mixer', *columns, 'parameters', 'bytes of state'], lines)}\n\n{NUMBERS}"


def draw(rows: Rows, figure: Any) -> None:
    """Recall by pairs, copying and the share of active tokens."""
    figure.set_size_inches(12, 4)
    recall, shares = figure.subplots(1, 2)
    found = rows.where(task=RECALL)
    for mixer in MIXERS:
        line(recall, [(n, found.find(metric, mixer=mixer)) for n, metric in found.slices(BY_PAIRS).items()], mixer)
    points = [(i, rows.where(task=task).find(ACTIVATION, mixer=SEQBOAT)) for i, task in enumerate(recipe.tasks())]
    line(shares, points, SEQBOAT, linestyle="none")
    recall.set(xlabel="key-value pairs", ylabel="accuracy", ylim=(-0.02, 1.02), title="MQAR")
    recall.set_xscale("log", base=2)
    legend(recall)
    shares.set_xticks(range(len(recipe.tasks())), recipe.tasks())
    shares.set(xlabel="task", ylabel="share of active tokens", ylim=(-0.02, 1.02), title="Activation")


TABLE = Table(
    "seqboat",
    "SeqBoat: attention on the tokens that a router activates",
    f"SeqBoat, {PAPER}. The tasks are ours: what is compared are the paper's statements, not its numbers.",
    cells,
    CLAIMS,
    markdown,
    draw,
)
main = entry(TABLE)

if __name__ == "__main__":
    sys.exit(main())
