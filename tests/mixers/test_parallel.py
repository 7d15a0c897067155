"""Parallel branches against their parts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.mixers import AttentionConfig, GatedDeltaNetConfig, MixtureOfMemoriesConfig, ParallelConfig
from seqmodels.sharding import unbox
from tests.shared import relative_error

DIM, T = 32, 12
X = jax.random.normal(jax.random.key(0), (2, T, DIM))
BRANCHES = (GatedDeltaNetConfig(num_heads=2, head_dim=8), AttentionConfig(num_heads=2, window=6))


def init(cfg):
    mixer = cfg.make(DIM)
    return mixer, jax.tree.map(lambda leaf: 5.0 * leaf, unbox(jax.jit(mixer.init)(jax.random.key(1), X)))


def outputs(params):
    """The branches by themselves."""
    run = lambda i: BRANCHES[i].make(DIM).apply({"params": params["params"][f"branch_{i}"]}, X)[0]  # noqa: E731
    return [jax.jit(run, static_argnums=0)(i) for i in range(2)]


def test_fixed_factors_add_the_branches():
    mixer, params = init(ParallelConfig(BRANCHES, weights=(0.75, -2.0)))
    first, second = outputs(params)
    assert relative_error(jax.jit(mixer.apply)(params, X)[0], 0.75 * first - 2.0 * second) < 1e-6
    mixer, _ = init(ParallelConfig(BRANCHES))
    assert relative_error(jax.jit(mixer.apply)(params, X)[0], (first + second) / 2) < 1e-6


@pytest.mark.parametrize("learned", ["branch", "channel"])
def test_learned_factors_begin_at_the_given_ones_and_train(learned):
    mixer, params = init(ParallelConfig(BRANCHES, weights=(0.6, 0.4), learned=learned, branch_norm=True))
    weights = params["params"]["scale"] / 5.0
    assert weights.shape == ((2,) if learned == "branch" else (2, DIM))
    np.testing.assert_allclose(np.moveaxis(weights, 0, -1), np.broadcast_to([0.6, 0.4], (*weights.shape[1:], 2)), 1e-6)
    grad = jax.jit(jax.grad(lambda p: jnp.sum(mixer.apply(p, X)[0] ** 2)))(params)["params"]
    assert np.all(grad["scale"] != 0)
    rms = lambda y: y / np.sqrt(np.mean(np.square(y), axis=-1, keepdims=True) + 1e-6)  # noqa: E731
    expected = sum(5.0 * w * 5.0 * rms(y) for w, y in zip((0.6, 0.4), outputs(params)))
    assert relative_error(jax.jit(mixer.apply)(params, X)[0], expected) < 1e-5


def test_a_branch_hands_its_losses_up():
    mixer = ParallelConfig((MixtureOfMemoriesConfig.tiny(), MixtureOfMemoriesConfig.tiny())).make(DIM)
    params = jax.eval_shape(mixer.init, jax.random.key(0), X)
    aux = jax.eval_shape(mixer.apply, params, X)[2]
    assert {"loss/balance/branch_0", "loss/balance/branch_1", "stat/load_max/branch_1"} <= set(aux)


def test_costs_are_those_of_the_branches():
    cfg = ParallelConfig(BRANCHES)
    assert cfg.flops_per_token(DIM, 64) == sum(b.flops_per_token(DIM, 64) for b in BRANCHES) + 4 * DIM
    assert cfg.make(DIM).state_bytes(64) == sum(b.make(DIM).state_bytes(64) for b in BRANCHES) + 8
    assert cfg.label == "Parallel(GatedDeltaNet | Attention(6))"


REFUSED = {
    "none": (lambda: ParallelConfig(()), r"branches=\(\) is empty"),
    "factors": (lambda: ParallelConfig(BRANCHES, weights=(1.0,)), "weights has 1 factors for 2 branches"),
    "infinite": (lambda: ParallelConfig(BRANCHES, weights=(1.0, math.inf)), r"weights=\(1.0, inf\) has a factor"),
    "learned": (lambda: dataclasses.replace(ParallelConfig(), learned="yes"), "learned='yes' is unknown"),
    "branch": (lambda: ParallelConfig((GatedDeltaNetConfig(),)).make(100), "num_heads=6 does not divide"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_configs_are_refused_in_one_line(case):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
