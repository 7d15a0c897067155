"""The cells of the study of selectivity (Mamba, arXiv:2312.00752): selective copying, induction heads, recall by N.

`get_config` is one of them, Mamba on selective copying at laptop scale; ``python -m eval.tables.selective`` runs them
all.

Command: ``python train.py --config configs/tables/selective.py``.
Duration: 3 minutes on a core. Expected score: accuracy 0.99.

The released scan lets step size, B and C follow the token (Mamba); the others are fixed in time: S4 and S4D with a
gated linear unit, H3 and Hyena, which multiply their fixed convolutions by gates that do follow the token, and Mamba
with less that follows it. Blocks have no MLP. State sizes are Mamba-2's and Mamba's N, at equal width.
"""

from __future__ import annotations

import dataclasses

from configs.tables._recipe import PAIRING, Budget, mqar, recall, small
from eval.lengths import LengthsConfig
from eval.recall import RecallConfig
from seqmodels.data.base import Dataset
from seqmodels.data.copying import SelectiveCopying
from seqmodels.data.induction import InductionHeads
from seqmodels.mixers import H3Config, HyenaConfig, Mamba2Config, MambaConfig, MixerConfig, S4Config, S4DConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment

COPYING, INDUCTION, RECALL = "copying", "induction", "mqar"
SELECTIVE, UNGATED, GATED = "Mamba", ("S4", "S4D"), ("H3", "Hyena")
"""Of copying and induction: the selective layer, fixed ones, and fixed ones between gates."""
NOTHING, STEP, MAPS = "Mamba, nothing selective", "Mamba, only the step size", "Mamba, only B and C"
ABLATED = {NOTHING: (), STEP: ("dt",), MAPS: ("B", "C")}
"""Of copying: Mamba with less that follows the token."""
STATES = (16, 64, 256)
"""N of recall."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the models and tasks of a scale."""

    dim: int
    depth: int
    head_dim: int
    """Of Mamba-2."""
    copying: Budget
    copying_length: int
    copying_tokens: int
    """Data tokens of a row."""
    induction: Budget
    induction_length: int
    factors: tuple[int, ...]
    """Lengths at which induction is asked, as multiples of the trained one."""
    mqar: Budget
    mqar_length: int
    vocab_size: int
    """Of recall; the other two have the paper's 16."""
    num_pairs: tuple[int, ...]
    examples: int = 512
    """Rows that a task asks at a length."""
    seeds: int = 1


SIZES = {
    "tiny": Size(
        dim=16,
        depth=2,
        head_dim=16,
        copying=Budget(3, 4, (3e-3,)),
        copying_length=16,
        copying_tokens=2,
        induction=Budget(3, 4, (3e-3,)),
        induction_length=16,
        factors=(1, 2),
        mqar=Budget(3, 4, (3e-3,)),
        mqar_length=32,
        vocab_size=64,
        num_pairs=(2, 4),
        examples=8,
    ),
    "laptop": Size(
        dim=64,
        depth=2,
        head_dim=64,
        copying=Budget(1000, 32, (1e-2,), "muon"),
        copying_length=64,
        copying_tokens=8,
        induction=Budget(1000, 32, (1e-2,), "muon"),
        induction_length=32,
        factors=(1, 2, 4, 8),
        mqar=Budget(1200, 64, (1e-2,), "muon"),
        mqar_length=32,
        vocab_size=32,
        num_pairs=(2, 4, 8),
    ),
    "gpu": Size(
        dim=64,
        depth=2,
        head_dim=64,
        copying=Budget(2000, 64, (3e-3, 1e-2), "muon"),
        copying_length=1024,
        copying_tokens=16,
        induction=Budget(3000, 64, (3e-3, 1e-2), "muon"),
        induction_length=256,
        factors=(1, 2, 4, 16, 64),
        mqar=Budget(1500, 64, (3e-3, 1e-2), "muon"),
        mqar_length=512,
        vocab_size=2048,
        num_pairs=(16, 32, 64, 128),
        examples=2048,
    ),
    "paper": Size(
        dim=64,
        depth=2,
        head_dim=64,
        copying=Budget(400_000, 64, (1e-4,)),
        copying_length=4096,
        copying_tokens=16,
        induction=Budget(204_800, 8, (1e-3, 2e-4)),  # 1e-3 for Mamba, 2e-4 for the others; both are tried for all
        induction_length=256,
        factors=(1, 2, 4, 16, 64, 256, 1024, 4096),
        # Known of the paper's recall: two layers, T/4 pairs, vocabulary 8192, widths 32 to 256. UNKNOWN to us: the
        # rest; steps, batch and rates are those of our table `recall`.
        mqar=Budget(20_000, 128, (1e-4, 4.6e-4, 2.2e-3, 1e-2)),
        mqar_length=1024,
        vocab_size=8192,
        num_pairs=(64, 128, 256),
        examples=2048,
    ),
}
"""UNKNOWN to us: head size and width of the gated layers in the paper's study of blocks; ours are the defaults."""


def tasks() -> dict[str, dict[str, MixerConfig]]:
    """The mixers that are trained on a task, by their name in the table."""
    of_layers: dict[str, MixerConfig] = {
        SELECTIVE: MambaConfig(),
        "S4": S4Config(),
        "S4D": S4DConfig(),
        "H3": H3Config(),
    }
    less: dict[str, MixerConfig] = {name: MambaConfig(selective=follows) for name, follows in ABLATED.items()}
    by_state: dict[str, MixerConfig] = {f"Mamba-2, N={n}": Mamba2Config(state_size=n) for n in STATES}
    return {
        COPYING: {**of_layers, "Hyena": HyenaConfig(), **less},
        INDUCTION: {**of_layers, "Hyena": HyenaConfig()},
        RECALL: {"Mamba, N=16": MambaConfig(state_size=16), **by_state},
    }


def budget(scale: str, task: str) -> Budget:
    """How long a cell of a task trains."""
    size = SIZES[scale]
    return {COPYING: size.copying, INDUCTION: size.induction, RECALL: size.mqar}[task]


def experiment(scale: str, task: str, mixer: str, rate: float, seed: int, name: str) -> Experiment:
    """A cell: blocks of the mixer without MLP; for recall the first one is `PAIRING`."""
    size, data = SIZES[scale], dataset(scale, task)
    block = BlockConfig(fitted(tasks()[task][mixer], size, data), mlp=None)
    pattern = (PAIRING, *[block] * (size.depth - 1)) if task == RECALL else (block,)
    model = LMConfig(size.dim, size.depth, pattern, vocab_size=-(-data.vocab_size // 8) * 8)
    return small(name, model, data, budget(scale, task), rate, seed, question(scale, task))


def fitted(mixer: MixerConfig, size: Size, data: Dataset) -> MixerConfig:
    """`mixer` with what depends on the scale: Mamba-2's heads, and a filter as long as the trained rows."""
    if isinstance(mixer, Mamba2Config):
        return dataclasses.replace(mixer, head_dim=size.head_dim)
    return dataclasses.replace(mixer, max_length=data.seq_len) if isinstance(mixer, HyenaConfig) else mixer


def dataset(scale: str, task: str) -> Dataset:
    """What a model is trained on."""
    size = SIZES[scale]
    if task == COPYING:
        return SelectiveCopying(seq_len=size.copying_length, num_tokens=(size.copying_tokens,))
    if task == INDUCTION:
        return InductionHeads(seq_len=size.induction_length)
    return mqar(size.vocab_size, size.mqar_length, size.num_pairs)


def question(scale: str, task: str) -> LengthsConfig | RecallConfig:
    """What it is asked at the end."""
    size = SIZES[scale]
    if task == RECALL:
        return recall(size.examples)
    factors = size.factors if task == INDUCTION else (1,)
    return LengthsConfig(factors, size.examples, min(size.examples, 32))


def get_config() -> Experiment:
    return experiment("laptop", COPYING, SELECTIVE, 1e-2, 0, "selective")
