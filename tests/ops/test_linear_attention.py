"""`linear_attention` in all its decays, against float64 loops, golden vectors, and the laws of the ops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmodels import ops
from seqmodels.ops.linear_attention.cases import CASES
from tests.ops import laws
from tests.ops.laws import assert_near, call, cotangents, gradients, problem, run

DECAYS = ("none", "fixed", "scalar", "vector")
IMPLS = {"reference": 1, "chunked": 5}  # times the golden tolerance


def plain(impl):
    def function(x, attrs, ids, S):
        decay = x.get("g")
        if "gamma" in attrs:
            decay = jnp.log(jnp.asarray(attrs["gamma"], jnp.float32))
        state = laws.table(x.get("initial_state"), S)
        options = {"scale": attrs["scale"], "segment_ids": ids, "num_segments": S, "impl": impl}
        o, state = ops.linear_attention(x["q"], x["k"], x["v"], decay, state=state, **options)
        return {"o": o, "final_state": laws.untable(state, S)}

    return function


def normalized(impl):
    def function(x, attrs, ids, S):
        state = (x["initial_state"], x["initial_z"])
        options = {"scale": attrs["scale"], "eps": attrs["eps"], "impl": impl}
        o, state = ops.normalized_linear_attention(x["q"], x["k"], x["v"], state=state, **options)
        return {"o": o, "final_state": state.memory, "final_z": state.normalizer}

    return function


def hgrn2(impl):
    def function(x, attrs, ids, S):
        low = x["lower_bound"]
        forget = low + (1 - low) * jax.nn.sigmoid(x["f"])
        options = {"scale": attrs["scale"], "state": x["initial_state"], "impl": impl}
        o, state = ops.linear_attention(jax.nn.silu(x["q"]), 1 - forget, x["v"], jnp.log(forget), **options)
        return {"o": o, "final_state": state}

    return function


def ssd(impl):
    def function(x, attrs, ids, S):
        dt = jax.nn.softplus(x["dt"] + x["dt_bias"]) if attrs["dt_softplus"] else x["dt"]
        state = laws.table(jnp.swapaxes(x["initial_state"], -1, -2), S)
        options = {"scale": 1.0, "state": state, "segment_ids": ids, "num_segments": S, "impl": impl}
        o, state = ops.linear_attention(x["C"], x["B"], dt[..., None] * x["x"], dt * x["A"], **options)
        o = o + x["D"][:, None] * x["x"] if "D" in x else o
        o = o * jax.nn.silu(x["z"]) if "z" in x else o
        return {"o": o, "final_state": jnp.swapaxes(laws.untable(state, S), -1, -2)}

    return function


GOLDEN = {
    "linear_attn": plain,
    "linear_attn_noinit": plain,
    "linear_attn_normalized": normalized,
    "retention": plain,
    "retention_state": plain,
    "simple_gla": plain,
    "simple_gla_strong_decay": plain,
    "gla": plain,
    "gla_medium_decay": plain,
    "gla_strong_decay": plain,
    "gla_packed": plain,
    "hgrn2": hgrn2,
    "ssd": ssd,
    "ssd_plain": ssd,
    "ssd_strong_decay": ssd,
    "ssd_packed": ssd,
}


@pytest.mark.shared
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name, impl):
    laws.check_golden(name, GOLDEN[name](impl), IMPLS[impl])


@pytest.mark.parametrize("decay", DECAYS)
def test_against_float64(decay):
    """Documents, padding, grouped heads, K != V, ragged T, carried state, extreme gates: outputs and all gradients."""
    laws.check_documents(problem(0, 2, 45, 4, 8, 12, delta=False, decay=decay, Hk=2, extreme=True), chunk_size=32)


@pytest.mark.parametrize("decay", ("scalar", "vector"))
def test_segments_against_float64(decay):
    laws.check_segments(problem(1, 2, 37, 2, 8, 6, delta=False, decay=decay, S=4, extreme=True), S=4, chunk_size=8)


@pytest.mark.parametrize("decay", ("fixed", "vector"))
def test_split_equals_whole(decay):
    laws.check_split(problem(2, 2, 40, 2, 8, 8, delta=False, decay=decay))


def test_padding_is_inert():
    laws.check_padding(problem(3, 2, 30, 2, 8, 8, delta=False, decay="scalar"))


def test_grouped_heads_are_repeated_heads():
    laws.check_grouped(problem(4, 1, 20, 6, 8, 8, delta=False, decay="scalar", Hk=2))


@pytest.mark.parametrize("decay", ("scalar", "vector"))
def test_bfloat16(decay):
    laws.check_bfloat16(problem(5, 2, 70, 2, 16, 16, delta=False, decay=decay))


@pytest.mark.parametrize("decay", ("scalar", "vector"))
def test_precise_where_strong_decays_meet_weak_ones(decay):
    laws.check_mixed_decays(problem(6, 1, 64, 2, 8, 8, delta=False, decay=decay, extreme=True))


@pytest.mark.parametrize("gate", (0.0, -30.0, -1e4, -np.inf))
def test_constant_gates_give_finite_gradients(gate):
    p = problem(7, 1, 40, 2, 8, 8, delta=False, decay="vector")
    p = p._replace(log_decay=np.full_like(p.log_decay, gate))
    outputs, slopes = gradients(p, cotangents(p))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((outputs, slopes)))
    assert_near(outputs, laws.loop(p), 2e-6)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_shape(data):
    laws.check_any_shape(data, delta=False, decays=DECAYS)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_tokens(impl):
    p = problem(8, 2, 0, 2, 4, 6, delta=False, decay="scalar")
    out, state = call(p, impl=impl)
    assert out.shape == (2, 0, 2, 6)
    np.testing.assert_array_equal(state, p.state)


def test_normalizer_is_carried_and_padding_gives_zero():
    random = np.random.default_rng(0)
    q, k = random.uniform(0.1, 1, (2, 1, 9, 2, 4)).astype(np.float32)
    v = random.standard_normal((1, 9, 2, 4)).astype(np.float32)
    ids = np.array([[0, 1, 1, 0, 1, 1, 1, 1, 0]])
    whole, last = ops.normalized_linear_attention(q, k, v, segment_ids=ids)
    first, state = ops.normalized_linear_attention(q[:, :4], k[:, :4], v[:, :4], segment_ids=ids[:, :4])
    second, final = ops.normalized_linear_attention(q[:, 4:], k[:, 4:], v[:, 4:], segment_ids=ids[:, 4:], state=state)
    assert_near((jnp.concatenate([first, second], 1), final), (whole, last), 1e-6)
    np.testing.assert_array_equal(whole[ids == 0], 0)
    real = ids[0] != 0
    weights = np.tril(np.einsum("thk,shk->hts", q[0, real], k[0, real]))
    expected = np.einsum("hts,shv->thv", weights / weights.sum(-1, keepdims=True), v[0, real])
    assert_near(whole[0, real], expected, 1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if not c.large], ids=lambda c: c.name)
def test_cases_are_calls(case):
    args, options = case.make(jax.random.key(0))
    out, state = jax.eval_shape(lambda *a: ops.linear_attention(*a, **options), *args)
    assert out.shape == (case.B, case.T, case.H, case.V) and state.shape == (case.B, case.H, case.K, case.V)
    assert case.flops() > 0 and case.bytes() == sum(x.nbytes for x in args) + out.size * 4 - (
        args[3].nbytes if case.decay == "fixed" else 0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((2, 5, 2))}, r"q has shape \(2, 5, 2\), expected \[B,T,Hk,K\]"),
        ({"k": np.zeros((2, 5, 2, 3))}, r"k has shape .* expected .* K=4"),
        ({"v": np.zeros((2, 5, 3, 4))}, "heads of v=3 is not a multiple of heads of q and k=2"),
        ({"log_decay": np.zeros((2, 5))}, "log_decay has shape"),
        ({"log_decay": np.zeros((2, 5, 2, 3))}, "log_decay has shape .* K=4"),
        ({"state": np.zeros((2, 2, 4, 5))}, "state has shape .* V=4"),
        ({"segment_ids": np.ones((2, 4), int)}, "segment_ids has shape .* T=5"),
        ({"segment_ids": np.ones((2, 5))}, "segment_ids has dtype float"),
        ({"num_segments": 2}, "num_segments=2 without segment_ids"),
        ({"segment_ids": np.ones((2, 5), int), "num_segments": 0}, "num_segments=0 is not a positive int"),
        ({"q": np.zeros((2, 5, 2, 4), int)}, "q has dtype int"),
        ({"chunk_size": 12}, "chunk_size=12 is not a power of two"),
        ({"chunk_size": -1}, "chunk_size=-1 is not a positive int"),
        ({"impl": "chunkd"}, "did you mean 'chunked'"),
        ({"impl": None}, "impl=None is unknown"),
        ({"log_decay": [-0.1, -0.1]}, "log_decay is a list, expected an array"),
        ({"q": np.zeros((2, 5, 2, 0)), "k": np.zeros((2, 5, 2, 0))}, "K=0"),
    ],
)
def test_errors_name_the_argument(change, message):
    x = np.zeros((2, 5, 2, 4), np.float32)
    arguments = dict({"q": x, "k": x, "v": x}, **change)
    with pytest.raises(ValueError, match=message) as caught:
        ops.linear_attention(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 5, 2, 4), (2, 0, 2, 4), (2, 5, 2, 0)])
def test_nothing_to_compute(shape):
    v, qk = np.zeros(shape, np.float32), np.zeros((*shape[:3], 4), np.float32)
    for out, state in (ops.linear_attention(qk, qk, v), ops.delta_rule(qk, qk, v, v.sum(-1))):
        assert out.shape == shape and state.shape == (shape[0], 2, 4, shape[3])


def test_one_jitted_call_serves_every_mask():
    """Ids are data: another layout of documents does not compile again."""
    p = problem(9, 2, 45, 4, 8, 12, delta=False, decay="scalar", Hk=2)
    before = run._cache_size()
    for seed in (1, 2):
        ids = laws.documents(2, 45, seed)
        assert_near(run(p, ids, chunk_size=32), laws.loop(p, ids), 2e-6)
    assert run._cache_size() == before + 1
