"""Parameter counts of published models, without allocating them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers import AttentionConfig, Mamba2Config
from seqmodels.models import BlockConfig, LMConfig


def count(cfg: LMConfig) -> int:
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(cfg.make().init, jax.random.key(0), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


MAMBA2 = {  # layers, width -> parameters with a vocabulary of 50288
    "130m": (24, 768, 128_989_632),
    "370m": (48, 1024, 368_346_624),
    "780m": (48, 1536, 780_161_280),
    "1.3b": (48, 2048, 1_343_757_312),
    "2.7b": (64, 2560, 2_702_599_680),
}


@pytest.mark.parametrize("depth, dim, expected", MAMBA2.values(), ids=MAMBA2)
def test_mamba2(depth, dim, expected):
    assert count(
        LMConfig(dim=dim, depth=depth, vocab_size=50288, pattern=(BlockConfig(Mamba2Config(), mlp=None),))
    ) == (expected)


def transformer(dim, depth, heads, kv_heads, hidden, vocab, *, tied=False, **attention):
    mixer = AttentionConfig(num_heads=heads, num_kv_heads=kv_heads, **attention)
    block = BlockConfig(mixer, MLPConfig(hidden=hidden))
    return LMConfig(dim=dim, depth=depth, vocab_size=vocab, pattern=(block,), tie_embeddings=tied)


def test_llama_2_7b():
    assert count(transformer(4096, 32, 32, 32, 11008, 32000)) == 6_738_415_616


def test_tinyllama_1b():
    assert count(transformer(2048, 22, 32, 4, 5632, 32000)) == 1_100_048_384


def test_qwen3_06b():
    cfg = transformer(1024, 28, 16, 8, 3072, 151936, tied=True, head_dim=128, qk_norm=True)
    assert count(cfg) == 596_049_920


def test_depth_adds_blocks_evenly():
    """Scanned periods and an unrolled remainder hold the same parameters per block."""
    base = LMConfig(dim=32, depth=1, pattern=(BlockConfig(AttentionConfig(num_heads=2), MLPConfig(hidden=48)),) * 3)
    counts = [count(dataclasses.replace(base, depth=depth)) for depth in range(1, 9)]
    assert len({b - a for a, b in itertools.pairwise(counts)}) == 1
