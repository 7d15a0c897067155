"""Other libraries beside our ops: which one serves a case, and that it gets our arguments in its own order."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import peers
from seqmodels import ops
from seqmodels.ops import cases

LIBRARY = types.SimpleNamespace(  # the public signatures of flash-linear-attention 0.6.0, computed by our references
    chunk_simple_gla=lambda q, k, v, g=None, g_gamma=None: ops.linear_attention(
        q, k, v, g if g_gamma is None else g_gamma, impl="reference"
    ),
    chunk_gla=lambda q, k, v, g: ops.linear_attention(q, k, v, g, impl="reference"),
    chunk_delta_rule=lambda q, k, v, beta: ops.delta_rule(q, k, v, beta, impl="reference"),
    chunk_gated_delta_rule=lambda q, k, v, g, beta: ops.delta_rule(q, k, v, beta, g, impl="reference"),
    chunk_kda=lambda q, k, v, g, beta: ops.delta_rule(q, k, v, beta, g, impl="reference"),
)
SMALL = [(op, case) for op in ("linear_attention", "delta_rule") for case in cases.load(op).cases if not case.large]


@pytest.mark.parametrize(("op", "case"), SMALL, ids=[f"{op}-{case.name}" for op, case in SMALL])
def test_every_decay_has_a_peer_that_computes_the_same(op, case):
    args, kwargs = case.make(jax.random.key(0))
    (peer,) = peers.find(op, args, kwargs)
    theirs = jax.jit(lambda *args: peer.run(LIBRARY, *args))(*args)
    ours = jax.jit(lambda *args: getattr(ops, op)(*args)[0])(*args)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_attention_has_peers_where_it_is_plain_and_causal():
    def names(case):
        return [peer.name for peer in peers.find("attention", *case.make(jax.random.key(0)))]

    by_name = {case.name: case for case in cases.load("attention").cases}
    assert names(by_name["causal"]) == ["torch_cudnn_attention", "torch_flash_attention"]
    assert names(by_name["window"]) == names(by_name["bidirectional"]) == []


def test_the_usual_shapes_are_there_for_every_family():
    shapes = {"b1_t8192_h96_d128", "b2_t16384_h16_d128", "b4_t2048_h16_d128", "b4_t4096_h64_d128"}
    shapes |= {"b8_t2048_h32_d256", "b8_t1024_h8_d64", "b1_t65536_h16_d128"}
    for op, prefix in (
        ("linear_attention", "retention_"),
        ("linear_attention", "gla_"),
        ("delta_rule", "gdn_"),
        ("attention", ""),
    ):
        assert {prefix + shape for shape in shapes} <= {case.name for case in cases.load(op).cases if case.large}


def test_a_peer_that_is_not_installed_says_so():
    peer = peers.Peer("other", "a_library_that_is_not_there", lambda *args: None)
    assert "not installed" in peers.programs(peer, [])


def test_finished_waits_for_the_device():
    waited = []
    result = peers.Finished(None, lambda: waited.append(True))
    assert jax.block_until_ready(result) is result and waited


def test_tensors_are_leaves_with_the_values_and_dtype():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    made = peers._tensor(torch, jnp.arange(3.0, dtype=jnp.bfloat16), "cpu")
    assert made.dtype == torch.bfloat16 and made.requires_grad and made.tolist() == [0, 1, 2]
