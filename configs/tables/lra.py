"""The cells of the Long Range Arena table (arXiv:2011.04006): classifiers of one mixer each on ListOps, Pathfinder and
digits read pixel by pixel.

`get_config` is one of them, S4D on short ListOps at laptop scale; ``python -m eval.tables.lra`` runs them all.

Command: ``python train.py --config configs/tables/lra.py``.
Duration: a minute on a core. Expected score: accuracy 0.43; the root operator alone gives 0.25.

State-space layers and attention read both ways, delta and decay rules only forwards; all pool the mean. A layer of S4,
S4D and S5 has a gated linear unit of its own; the others get an MLP, which makes the blocks about as large.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from configs.lra._recipe import classifier, published, s4
from configs.tables._recipe import Budget, small
from eval.classification import ClassificationConfig
from seqmodels.data.classification import Classification
from seqmodels.data.digits import Digits
from seqmodels.data.listops import ListOps
from seqmodels.data.pathfinder import Pathfinder
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers import AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MixerConfig, S4DConfig, S5Config
from seqmodels.models import BlockConfig, ClassifierConfig
from seqmodels.train.experiment import Experiment

TASKS = ("listops", "pathfinder", "digits")
STATE_SPACE = ("S4D", "S5")
MODELS = (*STATE_SPACE, "Attention", "GatedDeltaNet", "Mamba2")
PAPER_MODELS = ("S4", "S5", "Attention")


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the models and tasks of a scale."""

    dim: int
    depth: int
    head_dim: int
    listops: ListOps
    pathfinder: Pathfinder
    budgets: dict[str, Budget]
    """By task."""
    seeds: int = 1


SIZES = {
    "tiny": Size(
        dim=8,
        depth=1,
        head_dim=4,
        listops=ListOps(seq_len=16, lengths=(4, 16), max_depth=3, max_args=4, heldout_examples=16),
        pathfinder=Pathfinder(contour_length=2, distractors=0, heldout_examples=8),
        budgets={
            "listops": Budget(2, 4, (3e-3,)),
            "pathfinder": Budget(2, 2, (3e-3,)),
            "digits": Budget(2, 4, (3e-3,)),
        },
    ),
    "laptop": Size(
        dim=32,
        depth=2,
        head_dim=8,
        listops=ListOps(seq_len=48, lengths=(12, 48), max_depth=4, max_args=5, heldout_examples=1024),
        pathfinder=Pathfinder(contour_length=2, distractors=0, heldout_examples=512),
        budgets={
            "listops": Budget(1000, 32, (1e-2,), "muon"),
            "pathfinder": Budget(300, 16, (1e-2,), "muon"),
            "digits": Budget(400, 32, (1e-2,), "muon"),
        },
    ),
    "gpu": Size(
        dim=128,
        depth=4,
        head_dim=32,
        listops=ListOps(train_examples=96_000),
        pathfinder=Pathfinder(contour_length=6, train_examples=160_000, heldout_examples=2000),
        budgets={
            "listops": Budget(5000, 32, (4e-3,), "muon"),
            "pathfinder": Budget(10_000, 64, (4e-3,), "muon"),
            "digits": Budget(2000, 64, (4e-3,), "muon"),
        },
    ),
}


def dataset(scale: str, task: str) -> Classification:
    """What a model of a small scale is trained on."""
    size = SIZES[scale]
    return {"listops": size.listops, "pathfinder": size.pathfinder, "digits": Digits()}[task]


def experiment(scale: str, task: str, model: str, rate: float, seed: int, name: str) -> Experiment:
    """A cell of a small scale: `model` is one of `MODELS`."""
    size, data = SIZES[scale], dataset(scale, task)
    block = BlockConfig(mixer(size, model), None if model in STATE_SPACE else MLPConfig(ratio=2.0, multiple_of=8))
    made = classifier(data, block.mixer, dim=size.dim, depth=size.depth, numbers=task != "listops")
    return small(
        name,
        dataclasses.replace(made, pattern=(block,)),
        data,
        size.budgets[task],
        rate,
        seed,
        ClassificationConfig(batch_size=32),
    )


def mixer(size: Size, model: str) -> MixerConfig:
    """Heads of `head_dim` where there are heads; short sequences, so state-space layers start with larger steps."""
    heads = size.dim // size.head_dim
    known: dict[str, Any] = {
        "S4D": lambda: S4DConfig(dt_max=0.5, bidirectional=True),
        "S5": lambda: S5Config(state_size=2 * size.dim, num_blocks=size.head_dim // 4, dt_max=0.5, bidirectional=True),
        "Attention": lambda: AttentionConfig(heads, bidirectional=True),
        "GatedDeltaNet": lambda: GatedDeltaNetConfig(heads, head_dim=size.head_dim, expand_v=1.0),
        "Mamba2": lambda: Mamba2Config(head_dim=size.head_dim, state_size=2 * size.head_dim),
    }
    return known[model]()


def paper(task: str, model: str, name: str) -> Experiment:
    """A published recipe. Of S4: those of `configs.lra._recipe`.

    S5: sizes, rates, batches, epochs and weight decay of its code; left out is dropout (0.05 for Pathfinder). INFERRED:
    that both tasks are read both ways. Its block is a layer without MLP, as here.

    Attention: the first Transformer baseline. Kept are layers, widths, heads, batch and pooling (the mean in place of a
    learned token for ListOps, whose causal mixers could not use one); of ListOps also steps and weight decay. Its
    learning rate falls with the square root of the step; here it is the peak of that, with a cosine. UNKNOWN: the
    width of the MLP, the steps and the weight decay for Pathfinder (32, those of S5, and 0.1 are taken).
    """
    data = ListOps(seq_len=2048, train_examples=96_000)
    if task == "pathfinder":
        data = Pathfinder(train_examples=160_000, heldout_examples=20_000)
    made, budget = {
        ("listops", "S4"): lambda: (_model(data, s4(state_size=4), 256, 6), _budget(0.01, 32, 120_000)),
        ("listops", "S5"): lambda: (_model(data, _s5(16, 8), 128, 8), _budget(3e-3, 50, 76_800, 0.04)),
        ("listops", "Attention"): lambda: (_attention(data, 512, 8, 1024), _budget(1.6e-3, 32, 5000, 0.1)),
        ("pathfinder", "S4"): lambda: (_model(data, s4(), 256, 6), _budget(0.004, 64, 500_000)),
        ("pathfinder", "S5"): lambda: (_model(data, _s5(256, 8), 192, 6), _budget(4.5e-3, 64, 500_000, 0.03, 9e-4)),
        ("pathfinder", "Attention"): lambda: (_attention(data, 32, 4, 32), _budget(1e-3, 512, 62_500, 0.1)),
    }[task, model]()
    experiment = published(name, made, data, **budget)
    return dataclasses.replace(experiment, eval=(ClassificationConfig(batch_size=32),))


def _budget(
    rate: float, batch_size: int, steps: int, weight_decay: float = 0.05, system_rate: float = 1e-3
) -> dict[str, Any]:
    return {
        "learning_rate": rate,
        "batch_size": batch_size,
        "steps": steps,
        "weight_decay": weight_decay,
        "system_learning_rate": system_rate,
    }


def _model(data: Classification, mixer: MixerConfig, dim: int, depth: int) -> ClassifierConfig:
    return classifier(data, mixer, dim=dim, depth=depth, numbers=isinstance(data, Pathfinder))


def _s5(state_size: int, num_blocks: int) -> S5Config:
    return S5Config(state_size=state_size, num_blocks=num_blocks, bidirectional=True)


def _attention(data: Classification, dim: int, heads: int, hidden: int) -> ClassifierConfig:
    """Four blocks; pixels are tokens, as in the baseline."""
    block = BlockConfig(AttentionConfig(heads, bidirectional=True), MLPConfig(hidden=hidden, activation="gelu"))
    made = classifier(data, block.mixer, dim=dim, depth=4)
    return dataclasses.replace(made, pattern=(block,))


def get_config() -> Experiment:
    return experiment("laptop", "listops", "S4D", 1e-2, 0, "lra")
