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
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seqmodels.axes import DEFAULT_RULES, split_axes
from seqmodels.errors import UserError

logger = logging.getLogger("seqmodels.sharding")

MESH_AXES = ("data", "fsdp", "tensor", "sequence", "expert")


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


def join_processes(cfg: MeshConfig) -> None:
    """Start ``jax.distributed`` if the config asks for it. Must run before JAX touches a device.

    Raises:
      UserError: neither a cluster nor the environment variables say who takes part.
    """
    if not cfg.distributed or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            num_processes=_environment("JAX_NUM_PROCESSES"), process_id=_environment("JAX_PROCESS_ID")
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"mesh.distributed=True but the processes cannot join ({str(error).splitlines()[0]}); set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID for every process"
        ) from error


def _environment(name: str) -> int | None:
    value = os.environ.get(name)
    return None if value is None else int(value)


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
    return Mesh(_arrange(devices[:needed], sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arrange(devices: list[Any], sizes: list[int]) -> np.ndarray:
    """Devices as an array; on TPU so that neighbours in the mesh are neighbours in the torus."""
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(sizes)


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
            if not isinstance(leaf, nn.Partitioned):
                return self.replicated
            names, shape = leaf.get_partition_spec(), leaf.value.shape
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
    return isinstance(leaf, nn.Partitioned)


def unbox(tree: Any) -> Any:
    """Drop the logical axis names; unlike ``nn.meta.unbox`` this adds no sharding constraint."""
    return jax.tree.map(lambda leaf: leaf.value if is_box(leaf) else leaf, tree, is_leaf=is_box)


def path_name(path: Any) -> str:
    """A tree path as ``"params/backbone/…/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Rows(NamedTuple):
    """Which share of the global batch a process loads."""

    index: int
    count: int


def rows_of_process(partitioner: Partitioner, batch_size: int) -> Rows:
    """The share of ``batch_size`` rows that this process's devices hold; processes may hold the same rows.

    Raises:
      UserError: the rows of two processes overlap in part, or differ in number (an exotic mesh over processes).
    """
    held: dict[int, set[int]] = {}
    where = partitioner.sharding(("batch",), (batch_size,)).devices_indices_map((batch_size,))
    for device, (rows,) in where.items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(batch_size)))
    return share_of(held, jax.process_index(), batch_size)


def share_of(held: dict[int, set[int]], process: int, batch_size: int) -> Rows:
    """`rows_of_process`, given the rows that every process holds."""
    groups = sorted({tuple(sorted(rows)) for rows in held.values()})
    sizes = {len(rows) for rows in groups}
    if len(sizes) > 1 or sum(map(len, groups)) != batch_size:
        raise UserError(
            f"processes hold {len(groups)} overlapping shares of the batch; let mesh.data span the processes"
        )
    return Rows(groups.index(tuple(sorted(held[process]))), len(groups))


def to_devices(batch: dict[str, np.ndarray], shardings: dict[str, NamedSharding]) -> dict[str, jax.Array]:
    """Global arrays from the rows that this process loaded; its devices take them in the order of their own rows."""
    return {name: _place(rows, shardings[name]) for name, rows in batch.items()}


def to_host(tree: Any) -> Any:
    """NumPy copies of arrays that may be spread over processes, all of which must make this call."""

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def _place(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    split = sharding.spec[0]
    count = math.prod(sharding.mesh.shape[axis] for axis in (split or ()))  # shares of the global batch
    shares = sorted(set(_shares(sharding, count)))
    size = len(rows) // len(shares)
    shape = (size * count, *rows.shape[1:])

    def local(index: Any) -> np.ndarray:
        start = shares.index(index[0].indices(shape[0])[0] // size) * size
        return rows[(slice(start, start + size), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, local)


def _shares(sharding: NamedSharding, count: int) -> list[int]:
    """Which of `count` equal shares of the rows this process's devices hold."""
    rows = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0]))
    where = cast(dict[Any, tuple[slice]], rows.addressable_devices_indices_map((count,)))
    return [share.indices(count)[0] for (share,) in where.values()]
