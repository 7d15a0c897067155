"""The report on a model's cost."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import pytest

from configs.lm.hybrid_1b3 import get_config as hybrid_1b3
from configs.quickstart import get_config
from seqmodels import describe as module
from seqmodels.describe import (
    abstract_partitioner,
    blocks,
    describe,
    draw,
    folded,
    human,
    main,
    nbytes,
    parameters,
    table,
)
from seqmodels.errors import UserError
from seqmodels.sharding import MeshConfig, make_mesh, unbox


def test_counts_agree_with_the_model():
    cfg = dataclasses.replace(get_config().model, dim=32, depth=6)  # one period and a remainder of two
    model = cfg.make()
    params = unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    arrays = parameters(cfg, abstract_partitioner(MeshConfig()))
    found = {array.path: array.shape for array in arrays}
    flat = jax.tree_util.tree_leaves_with_path(params["params"])
    assert found == {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in flat}
    assert sum(array.device_bytes for array in arrays) == nbytes(params)

    costs = blocks(cfg, arrays, length=64)
    assert [(cost.label, cost.count) for cost in costs] == [("GatedDeltaNet", 5), ("Attention(128)", 1)]
    inside = sum(leaf.size for leaf in jax.tree.leaves(params["params"]["backbone"]["stack"]))
    assert sum(cost.count * cost.parameters for cost in costs) == inside
    state = model.init_state(1, 64)  # allocated
    assert sum(cost.count * cost.state_bytes for cost in costs) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    flops = sum(cost.count * cost.flops_per_token for cost in costs)
    assert flops == pytest.approx(cfg.block_flops_per_token(64))


def test_state_of_attention_grows_with_length_and_of_recurrences_does_not():
    model = hybrid_1b3().model
    arrays = parameters(model, abstract_partitioner(MeshConfig()))
    short, long = (blocks(model, arrays, length) for length in (1024, 4096))
    assert long[0].state_bytes == short[0].state_bytes
    assert long[1].state_bytes == pytest.approx(4 * short[1].state_bytes, rel=0.01)


def test_sharding_is_that_of_real_devices():
    cfg, mesh = get_config().model, MeshConfig(data=2, fsdp=2, tensor=2)
    imagined = parameters(cfg, abstract_partitioner(mesh))
    real = parameters(cfg, abstract_partitioner(mesh)._replace(mesh=make_mesh(mesh)))
    assert [a.sharding.spec for a in imagined] == [a.sharding.spec for a in real]
    assert [a.device_bytes for a in imagined] == [a.device_bytes for a in real]
    kernel = next(a for a in imagined if a.path.endswith("block_0/mlp/up_proj/kernel"))
    assert kernel.device_bytes * 4 == math.prod(kernel.shape) * 4


def test_the_large_hybrid_in_seconds():
    start = time.monotonic()
    text = describe(hybrid_1b3(), devices=256)
    assert time.monotonic() - start < 60
    assert "hybrid_1b3: [3 GatedDeltaNet, Attention] x 5, width 2048" in text
    assert "1,285,334,708 parameters" in text
    assert "mesh data=16 x fsdp=16" in text
    lines = text.splitlines()
    kernel = next(line.split() for line in lines if "block_3/mixer/q_proj/kernel" in line)
    assert kernel[1:] == ["1", "5x2048x2048", "float32", "layers", "embed", "heads", ".", "fsdp", ".", "5", "MiB"]
    assert next(line for line in lines if "block_0/mixer/q_proj/kernel" in line).split()[1] == "3"


def test_folding_keeps_every_parameter():
    model = hybrid_1b3().model
    arrays = parameters(model, abstract_partitioner(MeshConfig()))
    pairs = folded(model, arrays)
    assert sum(array.size * times for array, times in pairs) == sum(array.size for array in arrays)
    assert len(pairs) < len(arrays)


def test_draw():
    pattern = get_config().model.pattern
    assert draw(4, pattern) == "[3 GatedDeltaNet, Attention(128)] x 1"
    assert draw(10, pattern) == "[3 GatedDeltaNet, Attention(128)] x 2 + [2 GatedDeltaNet]"
    assert draw(2, pattern) == "[2 GatedDeltaNet]"


def test_fewer_layers_than_the_pattern():
    cfg = dataclasses.replace(get_config().model, depth=2)
    arrays = parameters(cfg, abstract_partitioner(MeshConfig()))
    (cost,) = blocks(cfg, arrays, 64)
    assert cost.count == 2
    assert 2 * cost.parameters == sum(array.size for array in arrays if "/tail/" in array.path)


def test_devices_must_fit():
    with pytest.raises(UserError, match="--devices 6 does not fit a mesh of 4"):
        abstract_partitioner(MeshConfig(fsdp=4), 6)
    with pytest.raises(UserError, match="--devices 8"):
        abstract_partitioner(MeshConfig(data=2, fsdp=2), 8)
    assert abstract_partitioner(MeshConfig(fsdp=4), 12).mesh.shape["data"] == 3


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "B", "0 B"), (1023, "B", "1023 B"), (1024, "B", "1 kiB"), (1285334708, "", "1.29 G"), (999, "", "999")],
)
def test_human(value, unit, text):
    assert human(value, unit) == text


def test_table_aligns():
    lines = table([("a", "number"), ("long name", "1"), ("b", "22")]).splitlines()
    assert lines[2].endswith("     1") and lines[3].endswith("    22") and lines[0].index("number") == 11


def test_command_line(capsys):
    assert main(["--config", "configs/quickstart.py", "--model.dim", "64", "--devices", "2"]) == 0
    out = capsys.readouterr().out
    assert "width 64" in out and "mesh data=2" in out
    assert module.__doc__ and "--config" in module.__doc__


def test_compiling_for_a_slice_comes_last(capsys, monkeypatch):
    monkeypatch.setattr(module, "compile_report", lambda experiment, topology: f"{experiment.name} on {topology}")
    assert main(["--config", "configs/quickstart.py", "--model.dim", "64", "--compile", "v5e:2x2"]) == 0
    assert capsys.readouterr().out.endswith("\n\nquickstart on v5e:2x2\n")
