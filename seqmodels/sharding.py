"""The device mesh, and how arrays are split over it.

Parameters carry logical axis names (``"embed"``, ``"heads"``, ``"mlp"``, ``"vocab"``, ``"layers"`` …); activations and
batches use ``"batch"`` and ``"length"``. `MeshConfig.rules` maps these names to mesh axes. A parameter dimension that
its mesh axes do not divide stays whole; a batch that does not divide is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seqmodels.errors import UserError

logger = logging.getLogger("seqmodels.sharding")

MESH_AXES = ("data", "fsdp", "tensor", "sequence", "expert")

DEFAULT_RULES = (
    ("batch", "data,fsdp"),
    ("length", "sequence"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("expert", "expert"),
    ("layers", ""),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out, and which array dimensions are split over them."""

    data: int = -1
    """Devices along the batch with whole copies of the parameters; -1 takes all that remain."""
    fsdp: int = 1
    """Devices along the batch that share the parameters between them."""
    tensor: int = 1
    """Devices that share heads, MLP features and vocabulary."""
    sequence: int = 1
    """Devices along time."""
    expert: int = 1
    """Devices that share experts."""
    rules: tuple[tuple[str, str], ...] = DEFAULT_RULES
    """Logical axis name, then the mesh axes that split it (joined by commas; empty: never split)."""
    distributed: bool = False
    """Join other processes through jax.distributed: found from the cluster, or from JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID."""

    def __post_init__(self) -> None:
        sizes = {f"mesh.{axis}": getattr(self, axis) for axis in MESH_AXES}
        for field, size in sizes.items():
            if size < 1 and size != -1:
                raise UserError(f"{field}={size} must be at least 1, or -1 for all remaining devices; set --{field}")
        wild = [field for field, size in sizes.items() if size == -1]
        if len(wild) > 1:
            raise UserError(
                f"{' and '.join(wild)} are -1, but only one can take the remaining devices; set --{wild[0]}"
            )
        for name, joined in self.rules:
            unknown = [axis for axis in split_axes(joined) if axis not in MESH_AXES]
            if unknown:
                raise UserError(f"mesh.rules sends {name!r} to unknown axes {unknown}; use {', '.join(MESH_AXES)}")


def split_axes(joined: str) -> tuple[str, ...]:
    """``"data,fsdp"`` -> ``("data", "fsdp")``."""
    return tuple(axis.strip() for axis in joined.split(",") if axis.strip())


def join_processes(cfg: MeshConfig) -> None:
    """Start ``jax.distributed`` if the config asks for it. Must run before JAX touches a device.

    Raises:
      UserError: neither a cluster nor the environment variables say who takes part.
    """
    if not cfg.distributed or jax.distributed.is_initialized():
        return
    found = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
    try:
        jax.distributed.initialize(**{name: int(value) for name, value in found.items() if value is not None})
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"mesh.distributed=True but the processes cannot join ({str(error).splitlines()[0]}); set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID for every process"
        ) from error


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `cfg` over `devices` (default: all; the first ones when it needs fewer), all its axes ``Auto``.

    Raises:
      UserError: the mesh needs more devices than there are, or they do not divide.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(cfg, axis) for axis in MESH_AXES]
    shape = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes) if size != 1)
    fixed = math.prod(size for size in sizes if size != -1)
    if fixed > len(devices):
        raise UserError(
            f"mesh {shape} needs {fixed} devices but there are {len(devices)}; lower it, for instance --mesh.data 1"
            f"{_more_devices(devices)}"
        )
    if -1 in sizes:
        if len(devices) % fixed:
            raise UserError(f"mesh {shape}: {len(devices)} devices do not divide by {fixed}; set every mesh axis")
        sizes[sizes.index(-1)] = len(devices) // fixed
    needed = math.prod(sizes)
    if jax.process_count() > 1 and needed != len(devices):
        raise UserError(f"mesh {shape} uses {needed} of {len(devices)} devices, but several processes must use all")
    grid = np.asarray(devices[:needed]).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _more_devices(devices: Sequence[Any]) -> str:
    return ", or force more with JAX_NUM_CPU_DEVICES" if devices and devices[0].platform == "cpu" else ""


class Partitioner(NamedTuple):
    """A mesh and the rules that place arrays on it."""

    mesh: Mesh
    rules: tuple[tuple[str, str], ...] = DEFAULT_RULES

    def spec(self, axes: Sequence[str | None], shape: Sequence[int], name: str = "array") -> PartitionSpec:
        """Split the dimensions that `axes` names; what does not divide, or would use a mesh axis twice, stays whole."""
        table, used, entries = dict(self.rules), set(), []
        for axis, size in zip(axes, shape, strict=True):
            over = tuple(a for a in split_axes(table.get(axis or "", "")) if self.mesh.shape[a] > 1)
            count = math.prod(self.mesh.shape[a] for a in over)
            if over and size % count:
                logger.debug("%s: %s of %d does not divide by %d devices, kept whole", name, axis, size, count)
                over = ()
            over = tuple(a for a in over if a not in used)
            used.update(over)
            entries.append(over or None)
        return PartitionSpec(*entries)

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int], name: str = "array") -> NamedSharding:
        """`spec` on this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape, name))

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def parameters(self, boxed: Any) -> Any:
        """Shardings of the abstract parameters `boxed` (``jax.eval_shape`` of a linen ``init``), without the boxes."""

        def place(path: Any, leaf: Any) -> NamedSharding:
            if not isinstance(leaf, nn.meta.AxisMetadata):
                return self.replicated
            names = leaf.get_partition_spec()
            shape = nn.meta.unbox(leaf).shape
            return self.sharding((*names, *[None] * (len(shape) - len(names))), shape, path_name(path))

        return jax.tree_util.tree_map_with_path(place, boxed, is_leaf=is_box)

    def like(self, tree: Any, parameters: Any, shardings: Any) -> Any:
        """Shardings of `tree`, an optimiser state: a leaf lies with the parameter whose path ends its own path.

        `parameters` are abstract and unboxed, `shardings` theirs. Leaves of another shape are replicated.
        """
        flat = jax.tree_util.tree_leaves_with_path(parameters)
        known = {path_name(path): (leaf.shape, place) for (path, leaf), place in zip(flat, jax.tree.leaves(shardings))}

        def place(path: Any, leaf: Any) -> NamedSharding:
            name = path_name(path)
            for start in [0, *(i + 1 for i, c in enumerate(name) if c == "/")]:
                shape, sharding = known.get(name[start:], (None, None))
                if sharding is not None and shape == leaf.shape:
                    return sharding
            return self.replicated

        return jax.tree_util.tree_map_with_path(place, tree)

    def batch(self, batch: Any, accumulate: int = 1) -> Any:
        """Shardings of a batch whose leaves are ``[B,T,...]`` or ``[B]`` (global shapes).

        Raises:
          UserError: B or T does not divide by the devices along it.
        """

        def place(leaf: Any) -> NamedSharding:
            axes = ("batch", "length", *[None] * leaf.ndim)[: leaf.ndim]
            for axis, size, field in zip(axes, leaf.shape, ("train.batch_size", "data.seq_len")):
                over = split_axes(dict(self.rules).get(axis or "", ""))
                count = math.prod(self.mesh.shape[a] for a in over)
                micro = accumulate if axis == "batch" else 1
                if size % (count * micro):
                    along = " x ".join(f"mesh.{a}={self.mesh.shape[a]}" for a in over)
                    times = f" times train.accumulate={micro}" if micro > 1 else ""
                    raise UserError(f"{field}={size} must be a multiple of {along}{times}; set --{field}")
            return self.sharding(axes, leaf.shape, "batch")

        return jax.tree.map(place, batch)

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Enter the mesh, and give ``with_logical_constraint`` the rules."""
        rules = [(name, split_axes(joined) or None) for name, joined in self.rules]
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(rules):
            yield


def is_box(leaf: Any) -> bool:
    """Whether `leaf` is a parameter with its logical axis names."""
    return isinstance(leaf, nn.meta.AxisMetadata)


def unbox(tree: Any) -> Any:
    """Drop the logical axis names; unlike ``nn.meta.unbox`` this adds no sharding constraint."""
    return jax.tree.map(lambda leaf: getattr(leaf, "value") if is_box(leaf) else leaf, tree, is_leaf=is_box)  # noqa: B009


def path_name(path: Any) -> str:
    """A tree path as ``"params/backbone/…/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Rows(NamedTuple):
    """Which share of the global batch a process loads."""

    index: int
    count: int


def rows_of_process(sharding: NamedSharding, batch_size: int) -> Rows:
    """The share of ``batch_size`` rows that this process's devices hold; shares are contiguous and equal.

    Raises:
      UserError: they are not (an exotic mesh over processes).
    """
    slices = {
        index[0].indices(batch_size)[:2] for index in sharding.addressable_devices_indices_map((batch_size,)).values()
    }
    start, stop = min(s for s, _ in slices), max(e for _, e in slices)
    rows = stop - start
    held = sum(e - s for s, e in slices)
    if held != rows or batch_size % rows or start % rows:
        raise UserError(f"this process would hold rows {sorted(slices)}; let mesh.data or mesh.fsdp span the processes")
    return Rows(start // rows, batch_size // rows)


def to_devices(batch: dict[str, np.ndarray], shardings: dict[str, NamedSharding]) -> dict[str, jax.Array]:
    """Global arrays from the rows that this process loaded."""
    return {name: jax.make_array_from_process_local_data(shardings[name], rows) for name, rows in batch.items()}
