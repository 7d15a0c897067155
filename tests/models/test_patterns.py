"""Which block stands at which layer."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs.quickstart import get_config
from seqmodels.describe import describe, draw
from seqmodels.errors import UserError
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers import AttentionConfig, GatedDeltaNetConfig, MixtureOfMemoriesConfig, ParallelConfig
from seqmodels.models import BlockConfig, LMConfig, patterns

MLP = MLPConfig(hidden=24)
LINEAR, FULL = BlockConfig(GatedDeltaNetConfig.tiny(), MLP), BlockConfig(AttentionConfig.tiny(), MLP)


def full_layers(pattern, depth):
    return [i for i, block in enumerate(LMConfig(dim=32, depth=depth, pattern=pattern).layers) if block is FULL]


def test_by_ratio():
    assert full_layers(patterns.by_ratio(LINEAR, FULL, 3), 8) == [3, 7]
    assert patterns.by_ratio(LINEAR, FULL, 0) == (FULL,)
    assert patterns.by_ratio(LINEAR, FULL, None) == (LINEAR,)
    with pytest.raises(UserError, match="ratio=-1"):
        patterns.by_ratio(LINEAR, FULL, -1)
    with pytest.raises(UserError, match=r"ratio=2\.5 linear blocks"):
        patterns.by_ratio(LINEAR, FULL, 2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "layers"), [(0, []), (1, [23]), (2, [11, 23]), (4, [5, 11, 17, 23])])
def test_evenly(count, layers):
    pattern = patterns.evenly(LINEAR, FULL, 24, count)
    assert full_layers(pattern, 24) == layers
    assert len(pattern) == (24 // count if count else 1), "whole periods are compiled once"


def test_at_layers():
    assert full_layers(patterns.at_layers(LINEAR, FULL, 6, [0, 4]), 6) == [0, 4]
    assert patterns.at_layers(LINEAR, FULL, 6, range(6)) == (FULL,)
    assert len(patterns.at_layers(LINEAR, FULL, 6, [1, 3, 5])) == 2
    with pytest.raises(UserError, match=r"layers=\[6\] are not among 0 to 5"):
        patterns.at_layers(LINEAR, FULL, 6, [2, 6])
    with pytest.raises(UserError, match="count=7 full blocks"):
        patterns.evenly(LINEAR, FULL, 6, 7)
    with pytest.raises(UserError, match="depth=0 leaves no layers"):
        patterns.at_layers(LINEAR, FULL, 0, [])


def test_describe_shows_every_kind_of_hybrid():
    """A sandwich, parallel branches and memories: the pattern in one line, FLOPs and state of each block."""
    local = dataclasses.replace(AttentionConfig.tiny(), window=16)
    blocks = (
        *patterns.serial(GatedDeltaNetConfig.tiny(), local, mlp=MLP),
        BlockConfig(ParallelConfig((GatedDeltaNetConfig.tiny(), local)), MLP),
        BlockConfig(MixtureOfMemoriesConfig.tiny(), None),
    )
    experiment = get_config()
    model = dataclasses.replace(experiment.model, dim=32, depth=4, pattern=blocks)
    text = describe(dataclasses.replace(experiment, model=model))
    labels = [
        "GatedDeltaNet",
        "Attention(16)",
        "Parallel(GatedDeltaNet | Attention(16))",
        "MixtureOfMemories(1 + 2 of 4 GatedDeltaNet)",
    ]
    assert draw(4, blocks) == f"[{', '.join(labels)}] x 1" and draw(4, blocks) in text
    rows = {label: next(line for line in text.splitlines() if line.startswith(f"{label}  ")) for label in labels}
    cells = [tuple(rows[label].removeprefix(label).split()) for label in labels]  # FLOPs and state among them
    assert len(set(cells)) == 4
    held = model.make().init_state(1, 64).periods
    size = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(state))  # noqa: E731
    assert size(held[2]) == size(held[0]) + size(held[1]) + 8, "one more cursor"


def test_a_model_of_every_kind_runs():
    blocks = (BlockConfig(ParallelConfig.tiny(), MLP), BlockConfig(MixtureOfMemoriesConfig.tiny(), MLP))
    model = LMConfig(dim=32, depth=3, vocab_size=40, pattern=blocks).make()
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    aux = jax.eval_shape(model.apply, params, tokens)[2]
    assert {"loss/balance", "stat/load_max"} <= set(aux) and all(leaf.shape == () for leaf in aux.values())
