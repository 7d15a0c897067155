"""The cells of the recall curve: MQAR accuracy against bytes of state, for every mixer of the package.

`get_config` is one of them, Gated DeltaNet at laptop scale; ``python -m eval.tables.recall`` runs them all. Mixers are
found by scanning the package: a new one is in the figure without a line here. Each comes at up to three sizes of state,
by the first of `KNOBS` that its config has, starting from its ``tiny()`` instance.

Command: ``python train.py --config configs/tables/recall.py``.
Duration: a minute on a core. Expected score: accuracy 0.95 over all numbers of pairs.

Below the paper scale `PAIRING` stands in front, so that what is compared is the state. At laptop scale 300 steps are
too few for some mixers, whose points then show how soon they learn and not what they hold.
"""

from __future__ import annotations

import dataclasses

from configs.tables._recipe import PAIRING, Budget, mqar, recall, small
from seqmodels.errors import UserError
from seqmodels.mixers import MixerConfig, discover
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment

KNOBS = ("num_memories", "memory_size", "state_size", "expand_ratio", "head_dim", "expand_k", "lru_width")
"""Fields that set the size of a state of fixed size."""
FACTORS = (1, 2, 4)
"""Of the knob."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the models and the task of a scale."""

    dim: int
    depth: int
    windows: tuple[int | None, ...]
    """Of attention, whose knob is how far it sees; ``None``: everything."""
    seq_len: int
    vocab_size: int
    num_pairs: tuple[int, ...]
    budget: Budget
    pairing: bool = True
    """Whether the first block is `PAIRING`."""
    factors: tuple[int, ...] = FACTORS
    seeds: int = 1
    examples: int = 512
    """Rows that are asked."""


SIZES = {
    "tiny": Size(32, 2, (8, None), 32, 64, (2, 4), Budget(3, 4, (3e-3,)), examples=8),
    "laptop": Size(64, 2, (16, 32, None), 64, 64, (2, 4, 8, 16), Budget(300, 64, (1e-2,), "muon")),
    "gpu": Size(128, 2, (32, 128, None), 512, 8192, (16, 32, 64), Budget(1500, 64, (1e-3, 4e-3)), examples=2048),
    "paper": Size(
        128,
        2,
        (32, 128, None),
        512,
        8192,
        (4, 8, 16, 32, 64),
        # UNKNOWN to us: the published sweep's number of steps and batch; four rates from 1e-4 to 1e-2 are as published.
        Budget(20_000, 128, (1e-4, 4.6e-4, 2.2e-3, 1e-2)),
        pairing=False,
        factors=(1, 2, 4, 8),
        seeds=3,
        examples=3000,
    ),
}


def mixers(scale: str) -> dict[str, list[MixerConfig]]:
    """Every mixer of the package with sizes of its state, by the name of its config without ``Config``."""
    size = SIZES[scale]
    found = {name.removesuffix("Config"): variants(kind.tiny(), size) for name, kind in discover().items()}
    return {name: [config for config in configs if fits(config, size.dim)] for name, configs in found.items()}


def fits(config: MixerConfig, dim: int) -> bool:
    """Whether models of this width can have the mixer: a state may not be larger than that allows."""
    try:
        config.make(dim, parent=None)
    except UserError:
        return False
    return True


def variants(config: MixerConfig, size: Size) -> list[MixerConfig]:
    """`config` at several sizes of its state, if it has a knob for that."""
    fields = {field.name: field.type for field in dataclasses.fields(config)}
    if "max_length" in fields:
        config = dataclasses.replace(config, max_length=size.seq_len)
    if fields.get("window") == "int | None":
        return [dataclasses.replace(config, window=window) for window in size.windows]
    knob = next((knob for knob in KNOBS if knob in fields), None)
    if knob is None:
        return [config]
    start = getattr(config, knob) or size.dim  # a width that is not given is the model's
    return [dataclasses.replace(config, **{knob: factor * start}) for factor in size.factors]


def experiment(scale: str, mixer: MixerConfig, rate: float, seed: int, name: str) -> Experiment:
    """A cell: blocks of the mixer without MLP, all or all but the first one."""
    size = SIZES[scale]
    blocks = [BlockConfig(mixer, mlp=None)] * size.depth
    pattern = (PAIRING, *blocks[1:]) if size.pairing else tuple(blocks)
    model = LMConfig(size.dim, size.depth, pattern, vocab_size=size.vocab_size)
    data = mqar(size.vocab_size, size.seq_len, size.num_pairs)
    return small(name, model, data, size.budget, rate, seed, recall(size.examples))


def get_config() -> Experiment:
    return experiment("laptop", mixers("laptop")["GatedDeltaNet"][1], 1e-2, 0, "recall")
