"""What the language-model recipes share: the shapes of the two scales of the hybrid study (arXiv:2507.06457).

The paper gives the two scales, the context of 2,048 tokens, AdamW, a cosine schedule, the data (FineWeb-Edu, 20 and 100
billion tokens) and the batch of the larger scale (one million tokens). Width, depth, MLP ratio and vocabulary are the
public defaults of the paper's code base. Learning rate, warm-up, weight decay and the smaller batch are ours.

Every recipe reads the standard library as bytes until you copy the file and put your own data in its place:
``data=TextFiles(paths=("texts/",), tokenizer_file="tokenizer.json", seq_len=2048)``.
"""

from __future__ import annotations

from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.layers.mlp import MLPConfig
from seqmodels.mixers.base import MixerConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sharding import MeshConfig
from seqmodels.train.experiment import CheckpointConfig, Experiment, OptimConfig, TrainConfig

VOCABULARY = 32000
CONTEXT = 2048


def block(mixer: MixerConfig, mlp_ratio: float = 4.0) -> BlockConfig:
    """A mixer and the study's SwiGLU."""
    return BlockConfig(mixer, MLPConfig(ratio=mlp_ratio, multiple_of=256))


def at_340m(name: str, *pattern: BlockConfig, depth: int = 24) -> Experiment:
    """About 340 million parameters on 20 billion tokens: width 1024, half a million tokens per step."""
    model = LMConfig(
        dim=1024,
        depth=depth,
        pattern=pattern,
        vocab_size=VOCABULARY,
        dtype="bfloat16",
        remat="full",
        tie_embeddings=True,
    )
    train = TrainConfig(steps=40_000, batch_size=256, eval_every=1000, sample_every=-1)
    return _experiment(name, model, train, OptimConfig(learning_rate=1e-3, warmup_steps=1000), MeshConfig(fsdp=8))


def at_1b3(name: str, *pattern: BlockConfig, depth: int = 24) -> Experiment:
    """About 1.3 billion parameters on 100 billion tokens: width 2048, a million tokens per step."""
    model = LMConfig(
        dim=2048,
        depth=depth,
        pattern=pattern,
        vocab_size=VOCABULARY,
        dtype="bfloat16",
        remat="full",
        tie_embeddings=False,
    )
    train = TrainConfig(steps=100_000, batch_size=512, eval_every=1000, sample_every=-1)
    return _experiment(name, model, train, OptimConfig(learning_rate=4e-4, warmup_steps=1000), MeshConfig(fsdp=16))


def _experiment(name: str, model: LMConfig, train: TrainConfig, optim: OptimConfig, mesh: MeshConfig) -> Experiment:
    data = StdlibCorpus(seq_len=CONTEXT)
    return Experiment(name, model, data, optim, train, mesh, CheckpointConfig(every=1000))
