"""Laws that every mixer keeps. Each is a function of a config; `ALL_LAWS` lists them.

    for law in ALL_LAWS:
        law(MyConfig.tiny())

The width is 32, so pass a small config. What costs time here is compilation: `Subject` compiles a function once per
config and shape, and the laws share a few lengths.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import sharding
from seqmodels.axes import Array
from seqmodels.mixers.base import Context, Cursor, MixerConfig
from tests.shared import relative_error

DIM, B, T = 32, 4, 20
HALF = T // 2
FULL_DIM = 2048  # where the paper's full-size defaults fit
MAX_LENGTH = 64
CONTEXT = {"layer": 1, "depth": 2}
EXACT = 2e-5  # float32, relative to the largest element
LOGICAL = {"embed", "heads", "mlp", "vocab", "layers", "expert", None}


class Subject:
    """A mixer under test with well-scaled random parameters, in float32 or bfloat16."""

    def __init__(self, cfg: MixerConfig, dtype: str = "float32"):
        self.cfg = cfg
        self.mixer = cfg.make(DIM, dtype=jnp.dtype(dtype))
        self.forward = jax.jit(self._forward)
        self.gradient = jax.jit(self._gradient)
        self.params = self._parameters() if dtype == "float32" else subject(cfg).params

    def init(self, key: Array) -> dict[str, Any]:
        """The mixer's own parameters and those that the model would own, with their logical axis names."""
        keys = jax.random.split(key)
        specs = self.cfg.shared_params(DIM, CONTEXT["depth"])
        shared = {name: spec.init(keys[0], spec.shape, jnp.float32) for name, spec in specs.items()}
        mixer = self.mixer.init(keys[1], jnp.zeros((1, 2, DIM)), context=Context(**CONTEXT, shared=shared))
        return {"mixer": mixer, "shared": shared}

    def _parameters(self) -> Any:
        """Kernels of unit gain and perturbed vectors, so that a parameter that does nothing shows."""

        def draw(path: Any, leaf: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(1), zlib.crc32(sharding.path_name(path).encode()))
            noise = jax.random.normal(key, leaf.shape, leaf.dtype)
            return noise / math.sqrt(leaf.shape[0]) if leaf.ndim > 1 else leaf + 0.1 * noise

        build = lambda key: jax.tree_util.tree_map_with_path(draw, sharding.unbox(self.init(key)))  # noqa: E731
        return jax.jit(build)(jax.random.key(0))

    def _forward(self, params: Any, x: Array, state: Any, ids: Array | None) -> tuple[Array, Any]:
        context = Context(**CONTEXT, shared=params["shared"])
        y, state, _ = self.mixer.apply(params["mixer"], x, state, ids, context)
        return y, state

    def _gradient(self, params: Any, x: Array, state: Any, ids: Array, dy: Array) -> tuple[Any, Array, Array]:
        """Gradients with respect to parameters and input, and the output."""

        def loss(params: Any, x: Array) -> tuple[Array, Array]:
            y, _ = self._forward(params, x, state, ids)
            return jnp.sum(y.astype(jnp.float32) * dy), y

        (dparams, dx), y = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return dparams, dx, y

    def zero(self) -> Any:
        return self.mixer.init_state(B, MAX_LENGTH)

    def run(self, x: Array, state: Any = None, ids: Array | None = None) -> tuple[Array, Any]:
        """Outputs and state, from the zero state and within one document unless told otherwise."""
        ids = jnp.ones(x.shape[:2], jnp.int32) if ids is None else ids
        return self.forward(self.params, x, self.zero() if state is None else state, ids)

    def warm(self) -> Any:
        """A state in the middle of a document."""
        return self.run(random(2, HALF))[1]

    def grad(self, x: Array, dy: Array, ids: Array | None = None) -> tuple[Any, Array, Array]:
        ids = jnp.ones(x.shape[:2], jnp.int32) if ids is None else ids
        return self.gradient(self.params, x, self.zero(), ids, dy)


@functools.lru_cache(maxsize=4)  # compiled programs are large
def subject(cfg: MixerConfig, dtype: str = "float32") -> Subject:
    return Subject(cfg, dtype)


def random(seed: int, length: int = T) -> Array:
    return jax.random.normal(jax.random.key(seed), (B, length, DIM))


def assert_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"


def assert_finite(tree: Any, what: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.isfinite(np.asarray(leaf, np.float32)).all(), f"{what}: {sharding.path_name(path)} is not finite"


def assert_same_state(mixer: Subject, actual: Any, expected: Any, ids: Array | None, what: str) -> None:
    """Equal cursors, and the same outputs from here on (a cache may hold leftovers that nobody sees)."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected), f"{what}: another structure"
    for name in Cursor._fields:
        at, of = getattr(actual.cursor, name), getattr(expected.cursor, name)
        assert np.array_equal(at, of), f"{what}: cursor.{name} {at} against {of}"
    for length in (1, HALF):
        more = None if ids is None else jnp.broadcast_to(ids[:, -1:], (B, length))
        y, _ = mixer.run(random(3, length), actual, more)
        same, _ = mixer.run(random(3, length), expected, more)
        assert_close(y, same, EXACT, f"{what}: the next {length} outputs")


def check_causality(cfg: MixerConfig) -> None:
    """``dy_t / dx_s`` is zero for ``s > t`` and not for all earlier ones; later inputs change no earlier output."""
    mixer, x = subject(cfg), random(0)
    for t in (0, 7, T - 1):
        dy = jnp.zeros((B, T, DIM)).at[:, t].set(random(1)[:, t])
        _, dx, y = mixer.grad(x, dy)
        size = np.abs(np.asarray(dx)).max(axis=(0, 2))
        assert size[t + 1 :].max(initial=0) <= 1e-6 * size.max(), f"y at {t} depends on the future"
        assert size[t] > 0, f"y at {t} ignores its own input"
        assert t == 0 or size[:t].max() > 0, f"y at {t} ignores the past"
        changed, _ = mixer.run(x.at[:, t + 1 :].set(random(4)[:, t + 1 :]))
        assert_close(changed[:, : t + 1], y[:, : t + 1], EXACT, f"outputs up to {t} with another future")


def check_split(cfg: MixerConfig) -> None:
    """Calls with the state carried between them equal one call, wherever the cuts are; few lengths, many orders."""
    mixer, x, start = subject(cfg), random(0), subject(cfg).warm()
    whole, final = mixer.run(x, start)
    for lengths in ((0, T), (T, 0), (HALF, HALF), (1,) * HALF + (HALF,), (1, HALF) + (1,) * (T - HALF - 1)):
        state, parts, begin = start, [], 0
        for length in lengths:
            y, state = mixer.run(x[:, begin : begin + length], state)
            parts, begin = [*parts, y], begin + length
        assert_close(jnp.concatenate(parts, axis=1), whole, EXACT, f"calls of {lengths} tokens")
        assert_same_state(mixer, state, final, None, f"calls of {lengths} tokens")


def check_steps(cfg: MixerConfig) -> None:
    """Token by token (decoding) equals one call."""
    mixer, x, start = subject(cfg), random(0), subject(cfg).warm()
    whole, final = mixer.run(x, start)
    state, steps = start, []
    for t in range(T):
        y, state = mixer.run(x[:, t : t + 1], state)
        steps.append(y)
    assert_close(jnp.concatenate(steps, axis=1), whole, EXACT, "step by step")
    assert_same_state(mixer, state, final, None, "step by step")


def check_segments(cfg: MixerConfig) -> None:
    """Documents packed into one row do not see each other, nor does a document see a finished one's state."""
    mixer, x = subject(cfg), random(0)
    for cut in (HALF, T - 1, 1):
        is_first = jnp.broadcast_to(jnp.arange(T) < cut, (B, T))
        ids = jnp.where(is_first, 5, 2)
        packed, state = mixer.run(x, ids=ids)
        first, _ = mixer.run(x, ids=jnp.where(is_first, ids, 0))
        second, final = mixer.run(x, ids=jnp.where(is_first, 0, ids))
        apart = jnp.where(is_first[..., None], first, second)
        assert_close(packed, apart, EXACT, f"documents that meet at {cut}")
        assert_same_state(mixer, state, final, ids, f"documents that meet at {cut}")
    ids = jnp.full((B, T), 2, jnp.int32)
    alone, final = mixer.run(x, ids=ids)
    for length in (1, HALF):
        _, held = mixer.run(random(2, HALF), ids=jnp.full((B, HALF), 5, jnp.int32))
        y, state = mixer.run(x[:, :length], held, ids[:, :length])
        assert_close(y, alone[:, :length], EXACT, f"{length} tokens of a new document after another call's")
        end = length + HALF
        rest, state = mixer.run(x[:, length:end], state, ids[:, length:end])
        assert_close(rest, alone[:, length:end], EXACT, "the rest of that document")
    assert_same_state(mixer, state, final, ids, "that document")


def check_padding(cfg: MixerConfig) -> None:
    """Padding before, after and between tokens changes nothing, whatever it holds."""
    mixer, x = subject(cfg), random(0)
    held, ones = mixer.warm(), jnp.ones((B, HALF), jnp.int32)
    places = {"left": range(HALF, T), "right": range(HALF), "interior": range(0, T, 2), "ragged": [*range(3, 12), 18]}
    for name, at in places.items():
        at = np.asarray(at)
        real = jnp.zeros((B, T), jnp.int32).at[:, at].set(1)
        noise = jnp.where(real[..., None] != 0, 1.0, 100.0)
        y, state = mixer.run(x * noise, held, real)
        alone, final = mixer.run(x[:, at], held, ones)
        assert_close(y[:, at], alone, EXACT, f"{name} padding")
        assert_same_state(mixer, state, final, None, f"{name} padding")
        _, dx, _ = mixer.grad(x * noise, random(1) * real[..., None], real)
        assert not np.any(np.asarray(dx) * (1 - np.asarray(real)[..., None])), f"{name} padding has a gradient"
    for length in (1, T):
        _, state = mixer.run(x[:, :length], held, jnp.zeros((B, length), jnp.int32))
        for (path, leaf), before in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(held), strict=True):
            assert np.array_equal(leaf, before), f"{length} tokens of padding change {sharding.path_name(path)}"


def check_defaults(cfg: MixerConfig) -> None:
    """Without state and ids: the zero state and one document."""
    mixer, x = subject(cfg), random(0, HALF)
    expected, final = mixer.run(x)
    y, state = mixer.forward(mixer.params, x, None, None)
    assert_close(y, expected, EXACT, "state=None, segment_ids=None")
    assert np.array_equal(state.cursor.position, final.cursor.position), "cursor without segment_ids"
    y, _ = mixer.forward(mixer.params, x, final, None)
    continued, _ = mixer.run(x, final)
    assert_close(y, continued, EXACT, "segment_ids=None continues the document")


def check_extremes(cfg: MixerConfig) -> None:
    """Finite outputs and gradients for huge, zero, tiny and constant inputs."""
    mixer, x = subject(cfg), random(0)
    inputs = {"x * 1e3": x * 1e3, "zeros": x * 0, "x * 1e-20": x * 1e-20, "+1e3": x * 0 + 1e3, "-1e3": x * 0 - 1e3}
    for name, value in inputs.items():
        assert_finite(mixer.grad(value, random(1)), name)


def check_bfloat16(cfg: MixerConfig) -> None:
    """Outputs and gradients in bfloat16 are close to float32; gradients of parameters stay float32."""
    full, half, x, dy = subject(cfg), subject(cfg, "bfloat16"), random(0), random(1)
    expected, actual = full.grad(x, dy), half.grad(x.astype(jnp.bfloat16), dy)
    assert actual[2].dtype == jnp.bfloat16, f"y is {actual[2].dtype}"
    assert {leaf.dtype for leaf in jax.tree.leaves(actual[0])} == {jnp.dtype("float32")}, "gradients are not float32"
    for name, tolerance, got, wanted in (("y", 2e-2, actual[2], expected[2]), ("dx", 5e-2, actual[1], expected[1])):
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        error = np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2))
        assert error <= tolerance, f"bfloat16 {name}: RMS error {error:.1e} > {tolerance} of the RMS"


def check_sharding(cfg: MixerConfig) -> None:
    """Eight devices (data, fsdp, tensor) give the outputs and gradients of one."""
    mixer, x, dy = subject(cfg), random(0), random(1)
    assert len(jax.devices()) >= 8, "needs 8 devices; set jax_num_cpu_devices"
    lowered, place = _lower(mixer, sharding.MeshConfig(data=2, fsdp=2, tensor=2), None)
    arguments = (mixer.params, x, mixer.zero(), jnp.ones((B, T), jnp.int32), dy)
    dparams, dx, y = lowered.compile()(*jax.device_put(arguments, place))
    expected = mixer.grad(x, dy)
    assert_close(y, expected[2], EXACT, "sharded y")
    assert_close(dx, expected[1], 5 * EXACT, "sharded dx")
    for (path, leaf), wanted in zip(jax.tree_util.tree_leaves_with_path(dparams), jax.tree.leaves(expected[0])):
        assert_close(leaf, wanted, 5 * EXACT, f"sharded gradient of {sharding.path_name(path)}")


def check_tpu(cfg: MixerConfig) -> None:
    """Forward and backward compile for four TPU v5e chips."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    lowered, _ = _lower(subject(cfg), sharding.MeshConfig(data=2, tensor=2), chips)
    assert lowered.compile().memory_analysis() is not None


def _lower(mixer: Subject, mesh: sharding.MeshConfig, devices: Any) -> tuple[Any, Any]:
    """The gradient lowered for a mesh, and the shardings of its arguments."""
    boxed = jax.eval_shape(mixer.init, jax.random.key(0))
    partitioner = sharding.Partitioner(sharding.make_mesh(mesh, devices))
    abstract = lambda *arrays: jax.eval_shape(lambda: arrays)  # noqa: E731
    inputs = abstract(random(0), mixer.zero(), jnp.ones((B, T), jnp.int32), random(1))
    rows = lambda leaf: partitioner.sharding(("batch", *[None] * (leaf.ndim - 1)), leaf.shape)  # noqa: E731
    place = (partitioner.parameters(boxed), *jax.tree.map(rows, inputs))
    outs = (place[0], place[1], place[1])
    with partitioner.activate():
        jitted = jax.jit(mixer._gradient, in_shardings=place, out_shardings=outs)
        return jitted.lower(sharding.unbox(boxed), *inputs), place


def check_state(cfg: MixerConfig) -> None:
    """The state keeps its structure, shapes and dtypes for every T; `state_bytes` counts it."""
    for dtype in ("float32", "bfloat16"):
        mixer = cfg.make(DIM, dtype=jnp.dtype(dtype))
        abstract = Subject.__new__(Subject)
        abstract.cfg, abstract.mixer = cfg, mixer
        params = sharding.unbox(jax.eval_shape(abstract.init, jax.random.key(0)))
        zero = jax.eval_shape(lambda mixer=mixer: mixer.init_state(B, MAX_LENGTH))
        assert isinstance(zero.cursor, Cursor) and zero._fields[0] == "cursor", "the first field must be the cursor"
        for length in (0, 1, T):
            x = jax.ShapeDtypeStruct((B, length, DIM), jnp.dtype(dtype))
            for ids in (None, jax.ShapeDtypeStruct((B, length), jnp.int32)):
                y, state = jax.eval_shape(abstract._forward, params, x, zero, ids)
                assert (y.shape, y.dtype) == (x.shape, x.dtype), f"T={length}: y is {y.dtype}{y.shape}"
                assert jax.tree.structure(state) == jax.tree.structure(zero), f"T={length}: another state structure"
                for (path, after), before in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(zero)):
                    same = (after.shape, after.dtype) == (before.shape, before.dtype)
                    assert same, f"T={length}: state {sharding.path_name(path)} was {before}, became {after}"
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(zero))
        assert mixer.state_bytes(MAX_LENGTH) * B == held, "state_bytes is not the state's size"


def check_parameters(cfg: MixerConfig) -> None:
    """Parameters are float32 whatever the computation is in, and every one has logical axis names."""
    mixer = cfg.make(DIM, dtype=jnp.bfloat16)
    boxed = jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 2, DIM), jnp.bfloat16))
    assert set(boxed) == {"params"}, f"collections {sorted(boxed)}, expected params only"
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=sharding.is_box):
        name = sharding.path_name(path)
        assert sharding.is_box(leaf), f"{name} has no logical axis names; use layers.param"
        assert set(leaf.names) <= LOGICAL, f"{name}: unknown logical axes {leaf.names}"
        assert leaf.value.dtype == jnp.float32, f"{name} is {leaf.value.dtype}"


def check_full_size(cfg: MixerConfig) -> None:
    """The default config builds at model width 2048, without allocating."""
    mixer = type(cfg)().make(FULL_DIM, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 128, FULL_DIM), jnp.bfloat16)
    boxed = jax.eval_shape(mixer.init, jax.random.key(0), x)
    y, state, _ = jax.eval_shape(mixer.apply, sharding.unbox(boxed), x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(lambda: mixer.init_state(1)))


def check_config(cfg: MixerConfig) -> None:
    """A frozen, hashable value with documented fields that counts its FLOPs."""
    same = dataclasses.replace(cfg)
    assert same == cfg and hash(same) == hash(cfg) and repr(same) == repr(cfg)
    assert isinstance(type(cfg).tiny(), type(cfg)), "tiny() gives another class"
    for field in dataclasses.fields(cfg):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cfg, field.name, None)
    for config, dim in ((cfg, DIM), (type(cfg)(), FULL_DIM)):
        short, long = config.flops_per_token(dim, 128), config.flops_per_token(dim, 4096)
        assert 0 < short <= long < math.inf, f"flops_per_token gives {short} at 128 and {long} at 4096 tokens"


ALL_LAWS = (
    check_causality,
    check_split,
    check_steps,
    check_segments,
    check_padding,
    check_defaults,
    check_extremes,
    check_bfloat16,
    check_sharding,
    check_tpu,
    check_state,
    check_parameters,
    check_full_size,
    check_config,
)
