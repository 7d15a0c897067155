"""`delta_rule`, plain and gated, against float64 loops, golden vectors, and the laws of the ops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from seqmodels import ops
from seqmodels.ops.delta_rule.cases import CASES
from seqmodels.ops.triangular import unit_lower_inverse
from tests.ops import laws
from tests.ops.laws import assert_near, call, cotangents, gradients, problem

DECAYS = ("none", "scalar", "vector")
IMPLS = {"reference": 1, "chunked": 5}  # times the golden tolerance
GOLDEN = (
    "delta_rule",
    "delta_rule_neg_eigval",
    "delta_rule_packed",
    "gated_delta_rule",
    "gated_delta_rule_strong_decay",
    "gated_delta_rule_l2norm_gva",
    "gated_delta_rule_packed",
    "kda",
    "kda_gva",
    "kda_strong_decay",
    "kda_packed",
)


@pytest.mark.shared
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name, impl):
    def function(x, attrs, ids, S):
        q, k = x["q"], x["k"]
        if attrs.get("qk_l2norm"):
            q, k = (y / jnp.sqrt(jnp.sum(y * y, -1, keepdims=True) + attrs["l2norm_eps"]) for y in (q, k))
        options = {"scale": attrs["scale"], "segment_ids": ids, "num_segments": S, "impl": impl}
        state = laws.table(x["initial_state"], S)
        o, state = ops.delta_rule(q, k, x["v"], x["beta"], x.get("g"), state=state, **options)
        return {"o": o, "final_state": laws.untable(state, S)}

    laws.check_golden(name, function, IMPLS[impl])


@pytest.mark.parametrize("decay", DECAYS)
def test_against_float64(decay):
    """Documents, padding, grouped heads, K != V, ragged T, carried state, extreme gates, beta up to 2."""
    laws.check_documents(problem(0, 2, 45, 4, 8, 12, delta=True, decay=decay, Hk=2, extreme=True), chunk_size=32)


@pytest.mark.parametrize("decay", ("scalar", "vector"))
def test_segments_against_float64(decay):
    laws.check_segments(problem(1, 2, 37, 2, 8, 6, delta=True, decay=decay, S=4, extreme=True), S=4, chunk_size=8)


def test_split_equals_whole():
    laws.check_split(problem(2, 2, 40, 2, 8, 8, delta=True, decay="scalar"))


def test_padding_is_inert():
    laws.check_padding(problem(3, 2, 30, 2, 8, 8, delta=True, decay="vector"))


def test_grouped_heads_are_repeated_heads():
    laws.check_grouped(problem(4, 1, 20, 6, 8, 8, delta=True, decay="scalar", Hk=2))


def test_bfloat16():
    laws.check_bfloat16(problem(5, 2, 70, 2, 16, 16, delta=True, decay="scalar"))


@pytest.mark.parametrize("decay", ("scalar", "vector"))
def test_precise_where_strong_decays_meet_weak_ones(decay):
    laws.check_mixed_decays(problem(6, 1, 64, 2, 8, 8, delta=True, decay=decay, extreme=True))


@pytest.mark.parametrize("gate", (0.0, -30.0, -np.inf))
@pytest.mark.parametrize("beta", (0.0, 2.0))
def test_borders_of_gates_and_beta(gate, beta):
    """Also keys of norm zero, and the same key at every token."""
    p = problem(7, 1, 40, 2, 8, 8, delta=True, decay="scalar")
    k = np.broadcast_to(p.k[:, :1], p.k.shape).copy()
    k[:, 5:9] = 0
    p = p._replace(k=k, log_decay=np.full_like(p.log_decay, gate), beta=np.full_like(p.beta, beta))
    outputs, slopes = gradients(p, cotangents(p))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((outputs, slopes)))
    assert_near(outputs, laws.loop(p), 5e-6)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_shape(data):
    laws.check_any_shape(data, delta=True, decays=("none", "fixed", "scalar", "vector"))


@pytest.mark.parametrize("impl", IMPLS)
def test_no_tokens(impl):
    p = problem(8, 2, 0, 2, 4, 6, delta=True, decay="scalar")
    out, state = call(p, impl=impl)
    assert out.shape == (2, 0, 2, 6)
    np.testing.assert_array_equal(state, p.state)


@pytest.mark.parametrize("case", [c for c in CASES if not c.large], ids=lambda c: c.name)
def test_cases_are_calls(case):
    args, options = case.make(jax.random.key(0))
    out, state = jax.eval_shape(lambda *a: ops.delta_rule(*a, **options), *args)
    assert out.shape == (case.B, case.T, case.H, case.V) and state.shape == (case.B, case.H, case.K, case.V)
    assert case.flops() > 0 and case.bytes() == sum(x.nbytes for x in args) + out.size * 4


def test_errors_name_beta():
    x = np.zeros((2, 5, 2, 4), np.float32)
    with pytest.raises(ValueError, match=r"beta has shape \(2, 5\), expected \[B,T,H\] with B=2, T=5, H=2"):
        ops.delta_rule(x, x, x, np.zeros((2, 5)))
    with pytest.raises(ValueError, match="beta has dtype int"):
        ops.delta_rule(x, x, x, np.zeros((2, 5, 2), int))


@pytest.mark.parametrize("size", (1, 16, 64))
def test_triangular_inverse(size):
    """Also where powers of the matrix overflow: entries of 2, as of equal keys written with beta = 2."""
    random = np.random.default_rng(size)
    low = np.tril(random.uniform(-1, 1, (3, size, size)), -1).astype(np.float32) / np.sqrt(size)
    low[0] = 2 * np.tril(np.ones((size, size)), -1)
    found = jax.jit(unit_lower_inverse)(low)
    expected = np.linalg.inv(np.eye(size) + low.astype(np.float64))
    for f, e in zip(found, expected):
        assert_near(f, e, 2e-6)
    with jax.enable_x64(True):
        strict = lambda x: unit_lower_inverse(jnp.tril(x, -1))  # noqa: E731
        check_grads(strict, (jnp.asarray(low[1:], jnp.float64),), order=1, modes=("rev",))
