"""Run an op on a mesh that the compiler partitions: every device computes its share inside `jax.shard_map`.

The compiler cannot split a kernel at all, and a chunked form badly: where chunks, batch and heads are merged into one
axis of small matrices, it gathers them on every device.

An op tells the axes of its arrays in letters (`Dims`). Batch and heads are split over the mesh axes that the logical
rules in force give them (flax's ``logical_axis_rules``, else `seqmodels.axes.DEFAULT_RULES`), every other axis stays
whole: both are independent in every op that has a kernel, so the devices exchange nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from seqmodels.axes import DEFAULT_RULES, split_axes

LOGICAL = {"B": "batch", "H": "heads", "Hk": "heads"}  # letters that are split -> name in the rules
WHOLE = {"T": "length", "vocab": "vocab", "embed": "embed"}  # letters that must not be -> name in the rules


class Dims(NamedTuple):
    """Axis letters of an op's arrays, such as ``"B T H K"``; ``None`` where an argument may be ``None`` and is."""

    inputs: tuple[str | None, ...]
    outputs: Any  # a string, or a tuple of them


class Share(NamedTuple):
    """How one device's part of a call is cut out; without mesh axes, the whole call."""

    mesh_axes: frozenset[str]  # that `jax.shard_map` takes from the compiler
    inputs: tuple[PartitionSpec | None, ...]
    outputs: Any
    idle: frozenset[str] = frozenset()  # mesh axes that split nothing: their devices repeat each other's work

    def left_to_compiler(self) -> Share:
        """The same with idle axes left to the compiler, which knows what is equal on them and need not be summed."""
        return self._replace(mesh_axes=self.mesh_axes - self.idle)

    def local(self, args: Sequence[Any]) -> Sequence[Any]:
        """Shapes and dtypes of the arguments as one device sees them."""
        if not self.mesh_axes:
            return args
        mesh = jax.sharding.get_abstract_mesh()
        return [
            None if spec is None else jax.ShapeDtypeStruct(NamedSharding(mesh, spec).shard_shape(x.shape), x.dtype)
            for x, spec in zip(args, self.inputs, strict=True)
        ]

    def wrap(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run` of whole arrays, computed by every device on its part."""
        if not self.mesh_axes:
            return run
        given = [i for i, spec in enumerate(self.inputs) if spec is not None]

        def sharded(*args: Any) -> Any:
            def part(*parts: Any) -> Any:
                full = dict(zip(given, parts, strict=True))
                return run(*[full.get(i) for i in range(len(args))])

            specs = tuple(self.inputs[i] for i in given)
            split = jax.shard_map(
                part,
                in_specs=specs,
                out_specs=self.outputs,
                axis_names=set(self.mesh_axes),
                check_vma=False,  # Pallas' interpreter fails the check; `run` exchanges nothing that it could get wrong
            )
            return split(*[args[i] for i in given])

        return sharded


WHOLE_CALL = Share(frozenset(), (), ())


def plan(dims: Dims | None, args: Sequence[Any]) -> Share | str:
    """How to share a call out over the mesh in force (`jax.set_mesh`), or the reason why it cannot be."""
    mesh = jax.sharding.get_abstract_mesh()
    open_axes = {name: kind for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind != AxisType.Manual}
    wide = tuple(name for name in open_axes if mesh.shape[name] > 1)
    if not wide:
        return WHOLE_CALL
    if dims is None:
        return f"the compiler splits the program over mesh axes {wide}, and a kernel must run inside jax.shard_map"
    if any(open_axes[name] == AxisType.Explicit for name in wide):
        return f"mesh axes {wide} are Explicit, a kernel is split over AxisType.Auto axes only"
    rules = rules_in_force()
    homeless = tuple(name for name in wide if not any(name in over for over in rules.values()))
    if homeless:
        return f"no logical axis rule says what mesh axes {homeless} split"
    names = {*LOGICAL.values(), *WHOLE.values()}
    over = {name: tuple(axis for axis in rules.get(name, ()) if axis in wide) for name in names}
    letters = {letter for axes in dims.inputs for letter in (axes or "").split()}
    for letter, name in WHOLE.items():
        if letter in letters and over[name]:
            return f"{name} is split over mesh axes {over[name]}, and a kernel needs all of it"
    over["heads"] = tuple(axis for axis in over["heads"] if axis not in over["batch"])
    for axes, x in zip(dims.inputs, args, strict=True):
        for letter, size in zip((axes or "").split(), () if x is None else x.shape):
            name = LOGICAL.get(letter)
            if name and size % math.prod(mesh.shape[axis] for axis in over[name]):
                return f"{letter}={size} does not divide by mesh axes { {a: mesh.shape[a] for a in over[name]} }"
    spec = lambda axes: PartitionSpec(*[over.get(LOGICAL.get(letter, "")) or None for letter in axes.split()])  # noqa: E731
    inputs = tuple(None if x is None or axes is None else spec(axes) for axes, x in zip(dims.inputs, args))
    idle = frozenset(open_axes) - {axis for name in LOGICAL.values() for axis in over[name]}
    return Share(frozenset(open_axes), inputs, jax.tree.map(spec, dims.outputs), idle)


def rules_in_force() -> dict[str, tuple[str, ...]]:
    """Logical axis name -> mesh axes: flax's rules, or the default ones where none are set."""
    rules = nn.get_logical_axis_rules() or DEFAULT_RULES
    return {name: split_axes(axes) if isinstance(axes, str) else tuple(axes or ()) for name, axes in rules}
