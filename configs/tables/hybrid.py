"""The cells of the hybrid study (arXiv:2507.06457): six linear mixers by their share of attention, and a Transformer.

`get_config` is one of them, a Gated DeltaNet block and one of attention on MQAR at laptop scale; ``python -m
eval.tables.hybrid`` runs them all.

Command: ``python train.py --config configs/tables/hybrid.py``.
Duration: about a minute of one busy core. Expected score: accuracy 1.000 (the committed results of the table).

Unlike the paper's models, the small ones have keys and values of one size in every mixer with a matrix state, so that
they are compared at equal state (HGRN's vector is as wide as the model). The paper scale has the public defaults of the
paper's code; what it leaves open is marked UNKNOWN.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from configs.lm._recipe import at_1b3, at_340m, block
from configs.tables._recipe import HALF, Budget, mqar, recall, small
from eval.passkey import PasskeyConfig
from eval.perplexity import PerplexityConfig
from eval.recall import RecallConfig
from seqmodels.data.base import Dataset
from seqmodels.data.passkey import Passkey
from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.data.text import TextFiles
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers import (
    AttentionConfig,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    GLAConfig,
    HGRN2Config,
    HGRNConfig,
    MixerConfig,
    RetNetConfig,
)
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.models.patterns import evenly
from seqmodels.train.experiment import Experiment

MIXERS = ("RetNet", "GLA", "HGRN", "HGRN2", "DeltaNet", "GatedDeltaNet")
TRANSFORMER = "Transformer"
PURE, FULL = "pure", "full"
TEXT = Path("../shared/data/tinyshakespeare.txt")
"""Read from the working directory, the repository's root; without it there is one task less."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the models and tasks of a scale."""

    dim: int
    depth: int
    head_dim: int
    """Of the linear mixers, which sets their state."""
    full_head_dim: int
    """Of full attention, whose rotary phases are `HALF`."""
    ratios: dict[str, int]
    """Linear to full blocks, and how many full ones that makes."""
    seq_len: int
    vocab_size: int
    num_pairs: tuple[int, ...]
    lengths: tuple[int, ...]
    """Bytes of the rows that hide a passkey."""
    mqar: Budget
    passkey: Budget
    text: Budget
    seeds: int = 1
    examples: int = 512
    """Rows that a task asks."""


SIZES = {
    "tiny": Size(
        dim=16,
        depth=2,
        head_dim=8,
        full_head_dim=8,
        ratios={PURE: 0, "1:1": 1},
        seq_len=32,
        vocab_size=64,
        num_pairs=(2, 4),
        lengths=(112,),
        mqar=Budget(3, 4, (3e-3,)),
        passkey=Budget(3, 4, (3e-3,)),
        text=Budget(3, 4, (3e-3,)),
        examples=8,
    ),
    "laptop": Size(
        dim=64,
        depth=2,
        head_dim=16,
        full_head_dim=32,
        ratios={PURE: 0, "1:1": 1},
        seq_len=64,
        vocab_size=64,
        num_pairs=(2, 4, 8, 16),
        lengths=(96, 128, 192, 256),
        mqar=Budget(300, 64, (5e-3, 1e-2), "muon"),
        passkey=Budget(300, 16, (7e-3,), "muon"),
        text=Budget(200, 64, (7e-3,), "muon"),
    ),
    "gpu": Size(
        dim=128,
        depth=8,
        head_dim=64,
        full_head_dim=64,
        ratios={PURE: 0, "7:1": 1, "3:1": 2, "1:1": 4},
        seq_len=512,
        vocab_size=2048,
        num_pairs=(8, 32, 64, 128),
        lengths=(128, 256, 512),
        mqar=Budget(1000, 64, (1e-3,)),
        passkey=Budget(600, 64, (2e-3,)),
        text=Budget(1000, 64, (2e-3,)),
        examples=2048,
    ),
}

PAPER_LAYERS = {PURE: (24, 0), "24:1": (24, 1), "12:1": (24, 2), "6:1": (24, 4), "3:1": (24, 6)}
"""Depth and full-attention blocks. UNKNOWN: which layers; INFERRED from the ratios: the ends of equal parts."""
PAPER_LAYERS_GDN = {PURE: (21, 0), "24:1": (21, 1), "12:1": (22, 2), "6:1": (21, 3), "3:1": (20, 5)}
"""Gated DeltaNet has 21 layers in the public recipes. UNKNOWN: the depth of its hybrids; here whole periods near 21."""
PAPER_SIZES = ("340M", "1.3B")


def tasks() -> list[str]:
    """The data that every model of the small scales is trained on."""
    return ["mqar", "passkey", "stdlib"] + (["shakespeare"] if TEXT.is_file() else [])


def budget(scale: str, task: str) -> Budget:
    """How long a cell of a task trains."""
    size = SIZES[scale]
    return {"mqar": size.mqar, "passkey": size.passkey}.get(task, size.text)


def experiment(scale: str, task: str, mixer: str, ratio: str, rate: float, seed: int, name: str) -> Experiment:
    """A cell of a small scale: `mixer` is one of `MIXERS`, or `TRANSFORMER` with the ratio `FULL`."""
    size, data = SIZES[scale], dataset(scale, task)
    mlp = None if task == "mqar" else MLPConfig(ratio=4.0, multiple_of=32)
    attention = BlockConfig(AttentionConfig(size.dim // size.full_head_dim, rotary=HALF), mlp)
    linear = attention if mixer == TRANSFORMER else BlockConfig(small_mixers(size)[mixer], mlp)
    full = size.depth if ratio == FULL else size.ratios[ratio]
    model = LMConfig(
        dim=size.dim,
        depth=size.depth,
        pattern=evenly(linear, attention, size.depth, full),
        vocab_size=-(-data.vocab_size // 8) * 8,
    )
    return small(name, model, data, budget(scale, task), rate, seed, question(scale, task))


def dataset(scale: str, task: str) -> Dataset:
    """What a model is trained on."""
    size = SIZES[scale]
    if task == "mqar":
        return mqar(size.vocab_size, size.seq_len, size.num_pairs)
    if task == "passkey":
        return Passkey(seq_len=max(size.lengths), lengths=size.lengths, digits=3)
    return (
        StdlibCorpus(seq_len=size.seq_len) if task == "stdlib" else TextFiles(paths=(str(TEXT),), seq_len=size.seq_len)
    )


def question(scale: str, task: str) -> RecallConfig | PasskeyConfig | PerplexityConfig:
    """What it is asked at the end."""
    size = SIZES[scale]
    if task == "mqar":
        return recall(size.examples)
    if task == "passkey":
        return PasskeyConfig(lengths=size.lengths, digits=3, examples=size.examples, batch_size=min(size.examples, 32))
    return PerplexityConfig(batch_size=32, max_tokens=128 * size.examples, buckets=1)


def small_mixers(size: Size) -> dict[str, MixerConfig]:
    """The six mixers, with heads of ``K = V = head_dim`` where there are heads."""
    heads = size.dim // size.head_dim
    return {
        "RetNet": RetNetConfig(heads, expand_k=1.0, expand_v=1.0),
        "GLA": GLAConfig(heads, expand_k=1.0, expand_v=1.0),
        "HGRN": HGRNConfig(),
        "HGRN2": HGRN2Config(expand_ratio=size.head_dim),
        "DeltaNet": DeltaNetConfig(heads),
        "GatedDeltaNet": GatedDeltaNetConfig(heads, head_dim=size.head_dim, expand_v=1.0),
    }


def paper_mixers(size: str) -> dict[str, MixerConfig]:
    """The public defaults at width 1024 (340M) and 2048 (1.3B). UNKNOWN: the checkpoints' own configs."""
    large = size == "1.3B"
    return {
        "RetNet": RetNetConfig(num_heads=8 if large else 4),
        "GLA": GLAConfig(num_heads=4),
        "HGRN": HGRNConfig(),
        "HGRN2": HGRN2Config(expand_ratio=128),
        "DeltaNet": DeltaNetConfig(num_heads=16 if large else 8),
        "GatedDeltaNet": GatedDeltaNetConfig(num_heads=6 if large else 3),
    }


def paper(size: str, mixer: str, ratio: str, name: str) -> Experiment:
    """A model of the paper, with the optimiser of `configs.lm._recipe`.

    UNKNOWN: peak learning rate, warm-up, weight decay, tokenizer, and the batch of the smaller size. The paper trains
    on FineWeb-Edu; the recipe reads the standard library until you put your own data in its place.
    """
    recipe = at_1b3 if size == "1.3B" else at_340m
    full = block(AttentionConfig(num_heads=16))
    if mixer == TRANSFORMER:
        made = recipe(name, full)
    else:
        depth, count = (PAPER_LAYERS_GDN if mixer == "GatedDeltaNet" else PAPER_LAYERS)[ratio]
        linear = block(paper_mixers(size)[mixer], mlp_ratio=2.0 if mixer == "RetNet" else 4.0)
        made = recipe(name, *evenly(linear, full, depth, count), depth=depth)
    questions = (PerplexityConfig(max_tokens=2**20, buckets=1), PasskeyConfig(lengths=(1024, 2048)))
    return dataclasses.replace(made, eval=(*questions, RecallConfig(num_pairs=(4, 16, 64))))


def get_config() -> Experiment:
    return experiment("laptop", "mqar", "GatedDeltaNet", "1:1", 1e-2, 0, "hybrid")
