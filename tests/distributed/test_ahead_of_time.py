"""The training step of a large hybrid compiles for a pod slice on a machine without any TPU."""

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from seqmodels.train.experiment import OptimConfig, TrainConfig
from seqmodels.train.optim import make_optimiser, make_schedule
from seqmodels.train.state import place_state
from seqmodels.train.step import make_step

HBM = 16e9  # of a v5e chip
CHUNKED = 1.23e9  # temporaries of the step below when the delta rule runs its chunked form


def compile_step(topology: str, model_cfg: LMConfig, mesh_cfg: MeshConfig, batch_size: int, length: int):
    """The compiled step and the number of parameters."""
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # depends on the plugin
        pytest.skip(f"libtpu gives no topology {topology}: {str(error).splitlines()[0][:100]}")
    partitioner = Partitioner(make_mesh(mesh_cfg, devices), mesh_cfg.rules)
    model, optim, train = model_cfg.make(), OptimConfig(), TrainConfig(batch_size=batch_size)
    optimiser, schedule = make_optimiser(optim, train.steps), make_schedule(optim, train.steps)
    placed = place_state(model, optimiser, partitioner)
    types = {"tokens": np.int32, "targets": np.int32, "loss_mask": np.float32, "segment_ids": np.int32}
    batch = {name: jax.ShapeDtypeStruct((batch_size, length), dtype) for name, dtype in types.items()}
    step = jax.jit(
        make_step(model, optimiser, train, schedule),
        donate_argnums=0,
        in_shardings=(placed.shardings, partitioner.batch(batch)),
        out_shardings=(placed.shardings, partitioner.replicated),
    )
    with partitioner.activate():
        compiled = step.lower(placed.abstract, batch).compile()
    return compiled, sum(leaf.size for leaf in jax.tree.leaves(placed.abstract.params))


@pytest.fixture
def no_compilation_cache():
    """Entries compiled for another machine cannot be read back."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def hybrid(dim: int, depth: int, heads: int, **changes) -> LMConfig:
    """Gated DeltaNet and attention in turn: a short period, since every block of it is compiled once."""
    pattern = (BlockConfig(GatedDeltaNetConfig(num_heads=heads)), BlockConfig(AttentionConfig(num_heads=16)))
    return LMConfig(dim=dim, depth=depth, pattern=pattern, dtype="bfloat16", remat="full", **changes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_large_hybrid_fits_a_v5e_slice(no_compilation_cache, capsys):
    """1.3-1.5 B parameters over 256 chips, a sequence of 2048 tokens on each; prints the memory that a chip needs.

    Kernels run there: forward, forward again for the gradient (remat) and backward for the delta rule, the same for
    attention with two for its backward pass. The loss runs its chunked form: the embedding is split.
    """
    model = hybrid(2048, 24, 6, vocab_size=32000)
    compiled, parameters = compile_step("v5e:16x16", model, MeshConfig(data=1, fsdp=256), 256, 2048)
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
    assert compiled.as_text().count("tpu_custom_call") == 3 + 4, "kernels are missing"
    assert memory.temp_size_in_bytes < 1.05 * CHUNKED
