"""The cells of the study of mixtures of memories (MoM, arXiv:2502.13685): MoM over Gated DeltaNet, and wider states.

`get_config` is one of them, four memories with a shared one at laptop scale; ``python -m eval.tables.mom`` runs them
all.

Command: ``python train.py --config configs/tables/mom.py``.
Duration: 2 minutes on a core. Expected score: accuracy 0.53 at 20 pairs, which differs by 0.13 between seeds.

At the small scales `PAIRING` stands in front, and the memories have no convolutions: their states are then what is
compared.

What MoM is held against is its inner mixer, plain, and with heads so wide that it has MoM's parameters, the parameters
that a token uses in MoM, or the bytes of all its memories' state. Widths are whole numbers, so they match within 3 %.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from configs.lm._recipe import at_1b3, at_340m
from configs.tables._recipe import PAIRING, Budget, mqar, recall, small
from eval.perplexity import PerplexityConfig
from eval.recall import RecallConfig
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers import GatedDeltaNetConfig, MixerConfig, MixtureOfMemoriesConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment

Match = Literal["nothing", "parameters", "activated parameters", "state bytes"]
MATCHED: dict[Match, str] = {
    "parameters": "model/parameters",
    "activated parameters": "model/activated_parameters",
    "state bytes": "model/state_bytes",
}
"""What a wider inner mixer shares with MoM, and the cost that measures it (see ``eval.tables.training.costs``)."""


@dataclasses.dataclass(frozen=True)
class Memories:
    """A mixture of memories."""

    memories: int = 4
    shared: bool = True
    balance_weight: float = 1e-2
    top_k: int = 2


@dataclasses.dataclass(frozen=True)
class Inner:
    """The inner mixer alone, as wide as makes it equal to `Memories()` in `match`."""

    match: Match = "nothing"


Variant = Memories | Inner

VARIANTS: tuple[Variant, ...] = (
    Memories(),
    Memories(memories=1),
    Memories(memories=2),
    Memories(memories=8),
    Memories(shared=False),
    Memories(balance_weight=0.0),
    Memories(balance_weight=1e-3),
    Memories(balance_weight=1e-1),  # ours
    Memories(top_k=1),  # ours: every pair in one memory instead of two, and so twice the room
    Inner(),
    *(Inner(match) for match in MATCHED),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the models and the task of a scale."""

    dim: int
    depth: int
    num_heads: int
    head_dim: int
    wide: dict[Match, int]
    """Head sizes of the inner mixer that match."""
    seq_len: int
    vocab_size: int
    num_pairs: tuple[int, ...]
    budget: Budget
    seeds: int = 3
    examples: int = 512
    """Rows that are asked."""


SIZES = {
    "tiny": Size(
        dim=16,
        depth=2,
        num_heads=1,
        head_dim=8,
        wide={"parameters": 23, "activated parameters": 16, "state bytes": 18},
        seq_len=32,
        vocab_size=64,
        num_pairs=(2, 4),
        budget=Budget(3, 4, (3e-3,)),
        seeds=1,
        examples=8,
    ),
    "laptop": Size(
        dim=64,
        depth=2,
        num_heads=1,  # of 8: the inner mixer holds few of 20 pairs
        head_dim=8,
        wide={"parameters": 23, "activated parameters": 16, "state bytes": 18},
        seq_len=80,
        vocab_size=64,
        num_pairs=(2, 5, 10, 20),
        budget=Budget(400, 64, (4e-3,), "muon"),  # better than 1e-2 in single runs, heads of 6
    ),
    "gpu": Size(
        dim=128,
        depth=4,
        num_heads=2,
        head_dim=32,
        wide={"parameters": 85, "activated parameters": 59, "state bytes": 72},
        seq_len=512,
        vocab_size=2048,
        num_pairs=(16, 32, 64, 128),
        budget=Budget(1500, 64, (1e-3,)),
        examples=2048,
    ),
}
PAPER_WIDE: dict[Match, int] = {"parameters": 666, "activated parameters": 461, "state bytes": 578}
"""Head sizes at the smaller paper scale; four heads, as in MoM. UNKNOWN: how the paper widened its single state."""
PAPER_SIZES = ("380M", "1.3B")


def experiment(scale: str, variant: Variant, rate: float, seed: int, name: str) -> Experiment:
    """A cell of a small scale: MQAR, blocks without MLP, memories in all but the first one."""
    size = SIZES[scale]
    memory = mixer(variant, size.num_heads, size.head_dim, size.wide, conv_size=None)
    pattern = (PAIRING, *[BlockConfig(memory, mlp=None)] * (size.depth - 1))
    model = LMConfig(size.dim, size.depth, pattern, vocab_size=size.vocab_size)
    data = mqar(size.vocab_size, size.seq_len, size.num_pairs)
    return small(name, model, data, size.budget, rate, seed, recall(size.examples))


def mixer(
    variant: Variant, heads: int, head_dim: int, wide: dict[Match, int], conv_size: int | None = 4
) -> MixerConfig:
    """The mixer of a variant; its balance loss is over the shares of all layers together, as in the public code."""
    inner = GatedDeltaNetConfig(heads, head_dim=head_dim, expand_v=1.0, conv_size=conv_size)
    if isinstance(variant, Inner):
        return dataclasses.replace(inner, head_dim=wide.get(variant.match, head_dim))
    return MixtureOfMemoriesConfig(
        inner,
        num_memories=variant.memories,
        top_k=min(variant.top_k, variant.memories),
        shared_memory=variant.shared,
        balance="pooled",
        balance_weight=variant.balance_weight,
    )


def paper(size: str, variant: Variant, name: str) -> Experiment:
    """A model of the paper: 24 layers, four heads of 256, seed 42, weight decay 0.01.

    UNKNOWN: the widths of the Gated DeltaNet that it is held against, and its MLP's; the larger size's learning rate
    (the smaller one's is taken). The appendix prints 0.25 million tokens of warm-up, the code 1,024 steps; the code is
    followed. The paper trains on SlimPajama; the recipe reads the standard library until you put your own data in its
    place.
    """
    large = size == "1.3B"
    made = (at_1b3 if large else at_340m)(
        name, BlockConfig(mixer(variant, 4, 256, PAPER_WIDE), MLPConfig(hidden=5632 if large else 2048))
    )
    return dataclasses.replace(
        made,
        model=dataclasses.replace(made.model, tie_embeddings=True),
        optim=dataclasses.replace(
            made.optim, learning_rate=3e-4, warmup_steps=477 if large else 1024, weight_decay=0.01
        ),
        train=dataclasses.replace(
            made.train, steps=47_680 if large else 30_720, batch_size=1024 if large else 256, seed=42
        ),
        eval=(RecallConfig(num_pairs=(4, 16, 64)), PerplexityConfig(max_tokens=2**20, buckets=1)),
    )


def get_config() -> Experiment:
    return experiment("laptop", Memories(), 4e-3, 0, "mom")
