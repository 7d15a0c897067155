"""`decode_step`: equal to the ops' references, in place, compiled for TPUs, lowered for CUDA, used for one token."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import mixers, ops
from seqmodels.ops import decode_step, dispatch
from seqmodels.sharding import MeshConfig, Partitioner, make_mesh
from tests.ops.tpu_cases import Problem
from tests.ops.tpu_kernels import compile_for, interpreted, no_races, quick, with_gradients  # noqa: F401
from tests.shared import relative_error

FORMS = ("reference", "pallas_tpu", "pallas_gpu")
ONE_REAL = (((2, 1),), ((0, 1),))  # ids of the two rows: a token, padding
PROBLEMS = {
    "linear_none": Problem("linear_attention", "none", T=1),
    "linear_fixed_strong_padding": Problem("linear_attention", "fixed", T=1, H=2, strong=True, rows=ONE_REAL),
    "delta_scalar_grouped_padding": Problem("delta_rule", "scalar", T=1, Hk=1, H=2, V=20, rows=ONE_REAL),
    "delta_vector_segments": Problem("delta_rule", "vector", T=1, H=2, rows=ONE_REAL, segments=3),
}


def make(problem):
    """`Problem.make` with keys that are not zero."""
    (q, _, *rest), cotangents, options = problem.make()
    k = q[..., ::-1] / np.linalg.norm(q, axis=-1, keepdims=True)
    return (q, k, *rest), cotangents, options


def step(problem, impl, options):
    """`decode_step` of the arguments of `problem`, which have a time axis."""
    token = lambda x: None if x is None or x.ndim == 1 else x[:, 0]  # noqa: E731
    ids, given = options["segment_ids"], {"num_segments": options["num_segments"], "scale": 0.3, "impl": impl}

    def run(q, k, v, *rest):
        *beta, g, state = rest
        g = g if problem.decay in ("none", "fixed") else token(g)
        q, k, v, beta = map(token, (q, k, v, beta[0] if beta else None))
        out, state = decode_step(q, k, v, beta, g, state=state, segment_ids=None if ids is None else ids[:, 0], **given)
        return out[:, None], state

    return with_gradients(run)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("impl", FORMS)
def test_is_one_token_of_the_op(problem, impl, request):
    """Outputs, state and all gradients; states that no token names come back bit for bit."""
    if impl == "pallas_tpu":
        request.getfixturevalue("no_races")
    args, cotangents, options = make(problem)
    run = step(problem, impl, options)
    out, grads = (quick if impl == "reference" else interpreted)(run, args, cotangents)
    expected, expected_grads = quick(problem.run("reference", **options), args, cotangents)
    for name, actual, wanted in zip(problem.names, (*out, *grads), (*expected, *expected_grads), strict=True):
        assert (actual is None) == (wanted is None), name
        if wanted is not None:
            assert actual.dtype == wanted.dtype and relative_error(actual, wanted) <= 2e-6, name
    if problem.rows:
        np.testing.assert_array_equal(out[1][1], args[-1][1])
    if problem.segments:
        np.testing.assert_array_equal(np.asarray(out[1])[0, ::2], args[-1][0, ::2])


@pytest.mark.parametrize("impl", FORMS[1:])
def test_padding_is_inert_even_if_it_is_not_a_number(impl):
    problem = PROBLEMS["delta_scalar_grouped_padding"]
    args, _, options = make(problem)
    spoil = lambda x: np.where(np.arange(2).reshape(2, *[1] * (x.ndim - 1)) == 1, np.float32(np.nan), x)  # noqa: E731
    ids = options["segment_ids"][:, 0]

    def run(*args):
        q, k, v, beta, g = (x[:, 0] for x in args[:5])
        return decode_step(q, k, v, beta, g, state=args[5], segment_ids=ids, impl=impl)

    out, state = interpreted(run, *map(spoil, args[:5]), args[5])
    assert np.isfinite(out).all() and not out[1].any()
    np.testing.assert_array_equal(state[1], args[5][1])


@dataclasses.dataclass(frozen=True)
class Size:
    """A step to compile: a delta rule with vector decay."""

    B: int
    H: int
    K: int
    V: int
    Hk: int | None = None
    segments: int | None = None

    def shapes(self):
        of = lambda *shape, dtype="float32": jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
        B, H, K, V, keys = self.B, self.H, self.K, self.V, self.Hk or self.H
        low = functools.partial(of, dtype="bfloat16")
        args = {"q": low(B, keys, K), "k": low(B, keys, K), "v": low(B, H, V), "beta": of(B, H), "g": of(B, H, K)}
        state = of(*((B, H, K, V) if self.segments is None else (B, self.segments, H, K, V)))
        return args | {"state": state} | ({"ids": of(B, dtype="int32")} if self.segments else {})

    def run(self, q, k, v, beta, g, state, ids=None, impl="pallas_tpu"):
        options = {"state": state, "segment_ids": ids, "num_segments": self.segments, "impl": impl}
        return decode_step(q, k, v, beta, g, **options)


SIZES = {
    "v4": (Size(8, 16, 128, 128), "v4"),
    "v5e_segments": (Size(8, 16, 128, 128, segments=4), "v5e"),
    "v5p_K256": (Size(4, 6, 256, 512, Hk=2), "v5p"),
    "v6e_odd": (Size(3, 3, 24, 40, Hk=1), "v6e"),
}


@pytest.mark.parametrize(("size", "chip"), SIZES.values(), ids=SIZES)
def test_compiles_in_place(size, chip):
    """The state is updated where it lies. Everything else is within 0.3 of the state's bytes, padding included."""
    compiled = compile_for(chip, size.run, size.shapes(), donate="state")
    memory, state = compiled.memory_analysis(), size.shapes()["state"]
    bytes_ = 4 * int(np.prod(state.shape))
    assert memory.alias_size_in_bytes >= bytes_, "the state is copied"
    if size.V % 128 == 0:
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        assert held - memory.alias_size_in_bytes <= 1.3 * bytes_


@pytest.mark.parametrize("size", [size for size, _ in SIZES.values()], ids=SIZES)
def test_lowers_for_cuda(size):
    shapes = size.shapes()
    lowered = (
        jax.jit(functools.partial(size.run, impl="pallas_gpu")).trace(**shapes).lower(lowering_platforms=("cuda",))
    )
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == 1


@pytest.mark.parametrize(
    ("name", "platform"),
    [("GatedDeltaNet", "cuda"), *((name, "tpu") for name in ("GatedDeltaNet", "KDA", "GLA", "Mamba2"))],
)
def test_mixers_decode_by_it(monkeypatch, name, platform):
    monkeypatch.setattr(dispatch, "compilers", lambda: ("tpu", "cuda"))
    mixer = getattr(mixers, f"{name}Config").tiny().make(32)
    x = jnp.zeros((1, 1, 32))
    shapes = jax.eval_shape(lambda: (mixer.init(jax.random.key(0), x), mixer.init_state(1)))
    traced = jax.jit(lambda params, state: mixer.apply(params, x, state)[:2]).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("tpu_custom_call" if platform == "tpu" else "__gpu$xla.gpu.triton") == 1


def test_a_decoding_loop_on_a_mesh_equals_one_call():
    """Two devices along the batch, two along the heads; the state goes round."""
    problem = Problem("delta_rule", "vector", T=3, Hk=2, H=2)
    (q, k, v, beta, g, state), _, _ = problem.make()
    expected = quick(lambda *args: ops.delta_rule(*args[:5], state=args[5], impl="reference"), q, k, v, beta, g, state)

    def loop(*args):
        def body(held, token):
            out, held = decode_step(*token, state=held, impl="pallas_tpu")
            return held, out

        held, out = jax.lax.scan(body, args[5], tuple(jnp.moveaxis(x, 1, 0) for x in args[:5]))
        return jnp.moveaxis(out, 0, 1), held

    with Partitioner(make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])).activate(), ops.interpret_kernels():
        found = quick(loop, q, k, v, beta, g, state)
    for value, wanted in zip(found, expected, strict=True):
        assert relative_error(value, wanted) <= 2e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.ones((2, 1, 2, 4))}, "q has shape"),
        ({"v": jnp.ones((2, 3, 4))}, "heads of v=3 is not a multiple of heads of q and k=2"),
        ({"beta": jnp.ones((2, 1))}, "beta has shape"),
        ({"log_decay": jnp.ones((2, 2, 4, 1))}, "log_decay has shape"),
        ({"segment_ids": jnp.ones((2, 1), jnp.int32)}, "segment_ids has shape"),
        ({"state": jnp.ones((2, 2, 4, 5))}, "state has shape"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    arguments = {name: jnp.ones((2, 2, 4)) for name in "qkv"} | change
    with pytest.raises(ValueError, match=message) as error:
        decode_step(**arguments)
    assert "\n" not in str(error.value)


def test_refusals_say_why():
    wide = jnp.ones((1, 1, 1024))
    with pytest.raises(ValueError, match=r"a state of K=1024, V=1024 needs about 24 MiB of vector memory"):
        decode_step(wide, wide, wide, impl="pallas_tpu")
    with pytest.raises(ValueError, match="K=1024, a GPU kernel holds 256 key channels at most"):
        decode_step(wide, wide, wide, impl="pallas_gpu")
