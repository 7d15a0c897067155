"""The cells of the study of SeqBoat (arXiv:2306.11197): attention on some tokens, on recall and selective copying.

`get_config` is one of them, SeqBoat on recall at laptop scale; ``python -m eval.tables.seqboat`` runs them all.

Command: ``python train.py --config configs/tables/seqboat.py``.
Duration: 3 minutes on a core. Expected score: accuracy 0.14 at 8 pairs, which is near chance.

SeqBoat is held against its own moving average without attention (one token of a row finds a place, and it sees itself
alone), and against attention on all tokens within a window of as many keys. The paper trains on the Long Range Arena
and enwik8; these small tasks are ours, and so is every size.
"""

from __future__ import annotations

import dataclasses

from configs.tables._recipe import HALF, Budget, mqar, recall, small
from eval.lengths import LengthsConfig
from eval.recall import RecallConfig
from seqmodels.data.base import Dataset
from seqmodels.data.copying import SelectiveCopying
from seqmodels.mixers import AttentionConfig, MixerConfig, SeqBoatConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment

RECALL, COPYING = "mqar", "copying"
SEQBOAT, AVERAGE, WINDOW = "SeqBoat", "moving average alone", "window attention"
MIXERS = (SEQBOAT, AVERAGE, WINDOW)


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the models and tasks of a scale."""

    dim: int
    depth: int
    head_dim: int
    """Of the gated attention unit, and of the two heads of window attention."""
    ema_states: int
    memory_size: int
    """Active tokens before a token that it sees; the window has one key more, the token itself."""
    seq_len: int
    vocab_size: int
    """Of recall; copying has 16 tokens."""
    num_pairs: tuple[int, ...]
    num_tokens: int
    """Data tokens of a row of copying."""
    recall: Budget
    copying: Budget
    examples: int = 512
    """Rows that are asked."""
    seeds: int = 1


SIZES = {
    "tiny": Size(16, 1, 8, 2, 4, 32, 64, (2, 4), 4, Budget(3, 4, (3e-3,)), Budget(3, 4, (3e-3,)), examples=8),
    "laptop": Size(
        dim=64,
        depth=2,
        head_dim=32,
        ema_states=4,
        memory_size=20,
        seq_len=64,
        vocab_size=64,
        num_pairs=(2, 4, 8),
        num_tokens=8,
        recall=Budget(1000, 64, (1e-2,), "muon"),
        copying=Budget(1000, 64, (1e-2,), "muon"),
    ),
    "gpu": Size(
        dim=128,
        depth=4,
        head_dim=64,
        ema_states=16,
        memory_size=128,
        seq_len=1024,
        vocab_size=2048,
        num_pairs=(16, 32, 64),
        num_tokens=16,
        recall=Budget(2000, 64, (3e-3, 1e-2), "muon"),
        copying=Budget(2000, 64, (3e-3, 1e-2), "muon"),
        examples=2048,
    ),
    "paper": Size(
        dim=616,  # the layers of the enwik8 model, of the released code, on our tasks: the paper has no such table
        depth=14,
        head_dim=128,
        ema_states=16,
        memory_size=1024,
        seq_len=8192,
        vocab_size=8192,
        num_pairs=(64, 256, 1024),
        num_tokens=16,
        recall=Budget(400_000, 8, (5e-3,)),
        copying=Budget(400_000, 8, (5e-3,)),
        examples=2048,
    ),
}


def tasks() -> tuple[str, ...]:
    """What every mixer is trained on."""
    return RECALL, COPYING


def budget(scale: str, task: str) -> Budget:
    """How long a cell of a task trains."""
    return SIZES[scale].recall if task == RECALL else SIZES[scale].copying


def mixer(name: str, size: Size) -> MixerConfig:
    """The mixer of a row of the table."""
    if name == WINDOW:
        return AttentionConfig(2, head_dim=size.head_dim, rotary=HALF, window=size.memory_size + 1)
    places = None if name == SEQBOAT else 1e-6  # rounded up: one place
    return SeqBoatConfig(size.head_dim, ema_states=size.ema_states, memory_size=size.memory_size, capacity=places)


def experiment(scale: str, task: str, name: str, rate: float, seed: int, run: str) -> Experiment:
    """A cell: blocks of the mixer without MLP."""
    size, data = SIZES[scale], dataset(scale, task)
    block = BlockConfig(mixer(name, size), mlp=None)
    model = LMConfig(size.dim, size.depth, (block,), vocab_size=-(-data.vocab_size // 8) * 8)
    return small(run, model, data, budget(scale, task), rate, seed, question(scale, task))


def dataset(scale: str, task: str) -> Dataset:
    """What a model is trained on."""
    size = SIZES[scale]
    if task == RECALL:
        return mqar(size.vocab_size, size.seq_len, size.num_pairs)
    return SelectiveCopying(seq_len=size.seq_len, num_tokens=(size.num_tokens,))


def question(scale: str, task: str) -> RecallConfig | LengthsConfig:
    """What it is asked at the end."""
    size = SIZES[scale]
    return recall(size.examples) if task == RECALL else LengthsConfig((1,), size.examples, min(size.examples, 32))


def get_config() -> Experiment:
    return experiment("laptop", RECALL, SEQBOAT, 1e-2, 0, "seqboat")
