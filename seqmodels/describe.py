"""What a model costs, without allocating it: parameters, FLOPs, state, shapes and sharding.

``python -m seqmodels.describe --config configs/lm/hybrid_1b3.py --model.dim 1024 --devices 256``
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from seqmodels import cli
from seqmodels.errors import UserError
from seqmodels.models import ClassifierConfig, ModelConfig
from seqmodels.models.block import BlockConfig
from seqmodels.models.stack import split_depth
from seqmodels.sharding import MESH_AXES, MeshConfig, Partitioner, is_box, path_name, unbox
from seqmodels.train.ahead_of_time import compile_report
from seqmodels.validate import check_model, check_vocabulary


class Parameter(NamedTuple):
    """One parameter array."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]  # logical names
    sharding: NamedSharding

    @property
    def size(self) -> int:
        """Numbers in the whole array."""
        return math.prod(self.shape)

    @property
    def device_bytes(self) -> int:
        """Bytes on one device."""
        return math.prod(self.sharding.shard_shape(self.shape)) * jnp.dtype(self.dtype).itemsize


class BlockCost(NamedTuple):
    """What one block costs; `count` layers are like it."""

    label: str
    count: int
    parameters: int
    flops_per_token: float
    state_bytes: int


def abstract_partitioner(cfg: MeshConfig, devices: int | None = None) -> Partitioner:
    """The partitioner of `cfg` on `devices` imagined devices (default: as few as it can do with).

    Raises:
      UserError: the mesh needs another number of devices.
    """
    sizes = {axis: getattr(cfg, axis) for axis in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    total = fixed if devices is None else devices
    wild = [axis for axis, size in sizes.items() if size == -1]
    if total % fixed or (not wild and total != fixed):
        raise UserError(
            f"--devices {devices} does not fit a mesh of {fixed} devices; use a multiple and one axis of -1"
        )
    shape = tuple(total // fixed if size == -1 else size for size in sizes.values())
    return Partitioner(AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape)), cfg.rules)  # type: ignore[arg-type]  # only its shape is used


def parameters(model: ModelConfig, partitioner: Partitioner) -> list[Parameter]:
    """All parameter arrays of `model`, in the order of the tree."""
    boxed = jax.eval_shape(model.make().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    shardings = jax.tree.leaves(partitioner.parameters(boxed))
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)
    found = []
    for (path, leaf), sharding in zip(leaves, shardings, strict=True):
        array = unbox(leaf)
        axes = tuple(leaf.get_partition_spec()) if is_box(leaf) else (None,) * array.ndim
        name = path_name(path).removeprefix("params/").removesuffix("/value")
        found.append(Parameter(name, array.shape, array.dtype, axes, sharding))
    return found


def blocks(model: ModelConfig, arrays: Sequence[Parameter], length: int) -> list[BlockCost]:
    """The costs of every kind of block in the model, at `length` tokens; a block that reads both ways has no state."""
    periods, rest = split_depth(model.depth, model.pattern)
    found = []
    for i, block in enumerate(model.pattern):
        count = periods + (i < len(rest))
        if not count:
            continue
        per_block = sum(
            array.size // (periods if "/periods/" in array.path else 1)
            for array in arrays
            if f"/{'periods' if periods else 'tail'}/block_{i}/" in f"/{array.path}"
        )
        mixer = block.make_mixer(model.dim, parent=None, dtype=jnp.dtype(model.dtype))
        state = mixer.state_bytes(length) if block.mixer.causal else 0
        cost = BlockCost(block.label, count, per_block, block.flops_per_token(model.dim, length), state)
        same = next((j for j, old in enumerate(found) if old._replace(count=count) == cost), None)
        if same is None:
            found.append(cost)
        else:
            found[same] = cost._replace(count=found[same].count + count)
    return found


def folded(model: ModelConfig, arrays: Sequence[Parameter]) -> list[tuple[Parameter, int]]:
    """Parameters with how often they occur: equal blocks of the pattern are shown as the first one of them."""
    first = {f"block_{i}": f"block_{model.pattern.index(block)}" for i, block in enumerate(model.pattern)}
    counted: dict[str, tuple[Parameter, int]] = {}
    for array in arrays:
        path = "/".join(first.get(part, part) for part in array.path.split("/"))
        counted[path] = (array._replace(path=path), counted.get(path, (array, 0))[1] + 1)
    return list(counted.values())


def nbytes(tree: Any) -> int:
    """Bytes of all arrays, abstract or not."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def draw(depth: int, pattern: tuple[BlockConfig, ...]) -> str:
    """The stack in one line: ``[3 GatedDeltaNet, Attention(128)] x 6``."""
    periods, rest = split_depth(depth, pattern)
    parts = ([f"[{_run_lengths(pattern)}] x {periods}"] if periods else []) + (
        [f"[{_run_lengths(rest)}]"] if rest else []
    )
    return " + ".join(parts)


def ends(model: ModelConfig) -> str:
    """What goes in and what comes out."""
    tokens = "numbers" if model.vocab_size is None else f"vocabulary {model.vocab_size}"
    return f"{tokens}, {model.num_classes} classes" if isinstance(model, ClassifierConfig) else tokens


def _run_lengths(pattern: Sequence[BlockConfig]) -> str:
    runs = [(label, len(list(group))) for label, group in itertools.groupby(block.label for block in pattern)]
    return ", ".join(label if count == 1 else f"{count} {label}" for label, count in runs)


def human(value: float, unit: str = "") -> str:
    """Three digits and a prefix: ``1.34 G``; bytes count in powers of 1024."""
    base = 1024.0 if unit == "B" else 1000.0
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < base or prefix == "P":
            break
        value /= base
    number = f"{value:.0f}" if prefix == "" and value == int(value) else f"{value:.3g}"
    return f"{number} {prefix}{'i' if unit == 'B' and prefix else ''}{unit}".strip()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the header; columns of numbers stand right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [all(cell[:1].isdigit() for cell in column[1:]) for column in zip(*rows, strict=True)]
    align = lambda row: [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]  # noqa: E731
    lines = ["  ".join(align(row)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * sum(widths, 2 * len(widths) - 2), *lines[1:]])


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _spec(sharding: NamedSharding) -> str:
    joined = ["*".join(axis) if isinstance(axis, tuple) else axis or "." for axis in sharding.spec]
    return " ".join(joined) if any(part != "." for part in joined) else "whole"


def describe(experiment: Any, devices: int | None = None) -> str:
    """The report that the command line prints."""
    model, length = experiment.model, experiment.data.seq_len
    partitioner = abstract_partitioner(experiment.mesh, devices)
    arrays = parameters(model, partitioner)
    costs = blocks(model, arrays, length)
    total = sum(array.size for array in arrays)
    inside = sum(cost.count * cost.parameters for cost in costs)
    head_flops = model.flops_per_token(length) - model.block_flops_per_token(length)
    rest = BlockCost("embedding, norm, head", 1, total - inside, head_flops, 0)
    rows = [("block", "layers", "parameters", "FLOPs/token", "state/sequence")]
    rows += [
        (c.label, str(c.count), human(c.parameters), human(c.flops_per_token), human(c.state_bytes, "B"))
        for c in [*costs, rest]
    ]
    state = sum(cost.count * cost.state_bytes for cost in costs)
    rows += [("total", str(model.depth), human(total), human(model.flops_per_token(length)), human(state, "B"))]
    shards = [("parameter", "times", "shape", "dtype", "logical axes", "sharding", "bytes/device")]
    for a, times in folded(model, arrays):
        axes = " ".join(axis or "." for axis in a.axes)
        size = human(a.device_bytes, "B")
        shards.append((a.path, str(times), _shape(a.shape), str(a.dtype), axes, _spec(a.sharding), size))
    per_device = sum(array.device_bytes for array in arrays)
    sizes = " x ".join(f"{axis}={size}" for axis, size in partitioner.mesh.shape.items() if size > 1) or "one device"
    return "\n".join(
        [
            f"{experiment.name}: {draw(model.depth, model.pattern)}, width {model.dim}, {ends(model)}",
            f"{total:,} parameters; forward FLOPs per token and state at {length} tokens (training costs about 3x)",
            "",
            table(rows),
            "",
            f"mesh {sizes}: {human(per_device, 'B')} of parameters per device; equal blocks are listed once",
            "",
            table(shards),
        ]
    )


@cli.command
def main(argv: list[str]) -> None:
    """Entry point."""
    parser = cli.Parser(
        prog="python -m seqmodels.describe", description="Say what a model costs, without allocating it."
    )
    parser.add_argument("--devices", type=int, metavar="N", help="imagine this many devices")
    parser.add_argument(
        "--compile", metavar="SLICE", help="compile the training step for a TPU slice such as v5e:16x16; takes minutes"
    )
    args, experiment = cli.parse_experiment(parser, argv)
    if args.devices is not None and args.devices < 1:
        raise UserError(f"--devices {args.devices} must be at least 1; leave it out for the smallest mesh")
    jax.config.update("jax_platforms", "cpu")
    check_model(experiment.model)
    check_vocabulary(experiment)
    print(describe(experiment, args.devices), flush=True)
    if args.compile:
        print(f"\n{compile_report(experiment, args.compile)}")


if __name__ == "__main__":
    sys.exit(main())
