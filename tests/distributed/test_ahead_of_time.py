"""The training step of a large hybrid compiles for a pod slice on a machine without any TPU."""

import importlib.util

import jax
import pytest

from seqmodels.data.stdlib import StdlibCorpus
from seqmodels.errors import UserError
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sharding import MeshConfig
from seqmodels.train.ahead_of_time import compile_report, compile_step, tpu_topology
from seqmodels.train.experiment import Experiment, TrainConfig

HBM = 16e9  # of a v5e chip
CHUNKED = 1.23e9  # temporaries of the step below when the delta rule runs its chunked form


@pytest.fixture(autouse=True)
def libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")


def hybrid(dim: int, depth: int, heads: int, **changes) -> LMConfig:
    """Gated DeltaNet and attention in turn: a short period, since every block of it is compiled once."""
    pattern = (BlockConfig(GatedDeltaNetConfig(num_heads=heads)), BlockConfig(AttentionConfig(num_heads=16)))
    return LMConfig(dim=dim, depth=depth, pattern=pattern, dtype="bfloat16", remat="full", **changes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_large_hybrid_fits_a_v5e_slice(capsys):
    """1.3-1.5 B parameters over 256 chips, a sequence of 2048 tokens on each; prints the memory that a chip needs.

    Kernels run there: forward, forward again for the gradient (remat) and backward for the delta rule and each of its
    three convolutions, the same for attention with two for its backward pass. The loss runs its chunked form: the
    embedding is split.
    """
    model = hybrid(2048, 24, 6, vocab_size=32000)
    data, train, mesh = StdlibCorpus(seq_len=2048), TrainConfig(batch_size=256), MeshConfig(data=1, fsdp=256)
    session, compiled = compile_step(Experiment("pod", model, data, train=train, mesh=mesh), "v5e:16x16")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(session.placed.abstract.params))
    memory = compiled.memory_analysis()
    held, peak = memory.argument_size_in_bytes, memory.peak_memory_in_bytes
    with capsys.disabled():
        print(
            f"\n{parameters / 1e9:.2f} B parameters on 256 v5e chips, 2048 tokens each; per chip: "
            f"state and batch {held / 1e6:.0f} MB, temporaries {memory.temp_size_in_bytes / 1e9:.2f} GB, "
            f"peak {peak / 1e9:.2f} GB"
        )
    assert 1.2e9 < parameters < 1.6e9
    assert held < 1.3 * 3 * 4 * parameters / 256, "parameters and moments are not split over all chips"
    assert held + memory.temp_size_in_bytes < HBM
    assert memory.alias_size_in_bytes > 0.9 * held, "the state is not donated"
    assert compiled.as_text().count("tpu_custom_call") == 3 * 4 + 4, "kernels are missing"
    assert memory.temp_size_in_bytes < 1.05 * CHUNKED


def test_report_of_a_step():
    model = LMConfig(dim=32, depth=1, pattern=(BlockConfig(AttentionConfig(num_heads=2), mlp=None),))
    experiment = Experiment("small", model, StdlibCorpus(seq_len=16), train=TrainConfig(batch_size=8))
    line = compile_report(experiment, "v5e:2x2")
    assert line.startswith(
        "small: the training step compiles for 4 devices of v5e:2x2; each holds state and batch 0.00 GB"
    )
    assert "all-reduce" in line and "\n" not in line


def test_mistakes():
    with pytest.raises(UserError, match="topology 'v5e:3x77' is not known"):
        tpu_topology("v5e:3x77")
    with pytest.raises(UserError, match="mesh data=8 needs 8 devices but there are 4"):
        model = LMConfig(dim=32, depth=1, pattern=(BlockConfig(AttentionConfig(num_heads=2)),))
        compile_step(Experiment("small", model, StdlibCorpus(seq_len=16), mesh=MeshConfig(data=8)), "v5e:2x2")
