"""Schedules, the weight-decay mask, and the update rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqmodels.errors import UserError
from seqmodels.sharding import path_name
from seqmodels.train.experiment import OptimConfig
from seqmodels.train.optim import decays, make_optimiser, make_schedule, orthogonalised, over_paths

BLOCK = "params/backbone/stack/periods/block_0"
SHAPES = {  # path -> (shape, decays, Muon)
    "params/embedding": ((32, 8), True, False),
    "params/lm_head": ((32, 8), True, False),
    "params/backbone/final_norm/scale": ((8,), False, False),
    "params/backbone/lower_bounds": ((4, 8), False, False),
    f"{BLOCK}/mixer_norm/scale": ((2, 8), False, False),
    f"{BLOCK}/mixer/q_proj/kernel": ((2, 8, 16), True, True),
    f"{BLOCK}/mixer/q_proj/bias": ((2, 16), False, False),
    f"{BLOCK}/mixer/q_conv1d/kernel": ((2, 4, 16), True, False),
    f"{BLOCK}/mixer/A_log": ((2, 3), False, False),
    f"{BLOCK}/mixer/D": ((2, 3), False, False),
    f"{BLOCK}/mixer/dt_bias": ((2, 3), False, False),
    f"{BLOCK}/mixer/o_norm/scale": ((2, 8), False, False),
    f"{BLOCK}/mixer/log_A_real": ((2, 8, 4), False, False),
    f"{BLOCK}/mixer/A_imag": ((2, 8, 4), False, False),
    f"{BLOCK}/mixer/P": ((2, 1, 8, 4, 2), False, False),
    f"{BLOCK}/mixer/B": ((2, 8, 4, 2), False, False),
    f"{BLOCK}/mixer/C": ((2, 8, 4, 2), True, False),
    f"{BLOCK}/mixer/log_dt": ((2, 8), False, False),
    "params/classifier/kernel": ((8, 10), True, False),
    "params/encoder/kernel": ((1, 8), True, False),
    "params/backbone/stack/tail/block_0/mlp/up_proj/kernel": ((8, 16), True, True),
    "params/backbone/stack/tail/block_0/mixer/A_log": ((3, 4), False, False),
}


@pytest.mark.parametrize("path", SHAPES)
def test_mask_by_path(path):
    shape, decay, muon = SHAPES[path]
    assert decays(path, len(shape)) is decay
    assert orthogonalised(path, len(shape)) is muon


def test_every_parameter_of_a_hybrid_is_sorted():
    """Names in real models: what decays are exactly the kernels and the embedding."""
    from tests.train.tiny import HYBRID, tiny_model

    model = tiny_model(pattern=HYBRID).make()
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    mask = jax.tree_util.tree_leaves_with_path(over_paths(decays, jax.tree.map(lambda x: x, params)))
    named = {path_name(path): bool(flag) for path, flag in mask}
    assert any(named.values()) and not all(named.values())
    for name, flag in named.items():
        assert flag == any(part in ("kernel", "embedding") for part in name.split("/")), name


def learning_rates(steps=100, **changes):
    schedule = make_schedule(OptimConfig(learning_rate=2.0, warmup_steps=10, **changes), steps)
    return np.array([schedule(i) for i in range(steps)])


def test_warmup_is_linear_and_never_zero():
    for name in ("cosine", "wsd", "constant"):
        rates = learning_rates(schedule=name)
        np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)


def test_cosine_ends_at_the_final_fraction():
    rates = learning_rates(schedule="cosine", final_fraction=0.1)
    np.testing.assert_allclose(rates[-1], 0.2, rtol=1e-6)
    middle = 10 + (99 - 10) / 2
    np.testing.assert_allclose(rates[int(middle)] + rates[int(middle) + 1], 2 * (0.55 * 2.0), rtol=2e-2)
    assert (np.diff(rates[10:]) <= 0).all()


def test_wsd_is_flat_then_linear():
    rates = learning_rates(schedule="wsd", final_fraction=0.0, decay_fraction=0.2)
    np.testing.assert_allclose(rates[10:79], 2.0)
    np.testing.assert_allclose(np.diff(rates[80:]), -2.0 / 20, rtol=1e-4)
    np.testing.assert_allclose(rates[-1], 0.0, atol=1e-6)


def test_constant_stays():
    np.testing.assert_allclose(learning_rates(schedule="constant")[10:], 2.0)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_optimisers_minimise_and_decay(name):
    """A stacked regression: the loss falls under each rule, and decay shrinks exactly the masked parameters."""
    target = jax.random.normal(jax.random.key(0), (2, 8, 6))
    params = {"periods": {"kernel": jnp.zeros((2, 8, 6)), "bias": jnp.zeros((2, 6))}, "embedding": jnp.ones((5, 4))}
    loss = lambda p: (  # noqa: E731
        jnp.mean((p["periods"]["kernel"] - target) ** 2)
        + jnp.mean((p["periods"]["bias"] - 1) ** 2)
        + jnp.mean(p["embedding"] ** 2)
    )
    optimiser = make_optimiser(OptimConfig(name=name, learning_rate=0.05, warmup_steps=0, weight_decay=0.0), 60)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), None, length=60)[0][0]

    trained = run(params)
    assert loss(trained) < 0.35 * loss(params)
    for leaf in jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), trained, params)):
        assert leaf > 0.05

    decayed = make_optimiser(OptimConfig(name=name, learning_rate=0.1, warmup_steps=0, weight_decay=0.5), 60)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = decayed.update(jax.tree.map(jnp.zeros_like, params), decayed.init(ones), ones)
    np.testing.assert_allclose(updates["periods"]["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_allclose(updates["embedding"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["periods"]["bias"], 0.0)


def test_muon_orthogonalises_every_layer():
    """Singular values of a Muon update of every stacked matrix are close to each other (five Newton-Schulz steps)."""
    grads = {"periods": {"kernel": jax.random.normal(jax.random.key(1), (3, 12, 8))}}
    cfg = OptimConfig(name="muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.0, schedule="constant")
    optimiser = make_optimiser(cfg, 10)
    updates, _ = optimiser.update(grads, optimiser.init(grads), grads)
    values = np.linalg.svd(np.asarray(updates["periods"]["kernel"]), compute_uv=False)
    assert values.shape == (3, 8)
    np.testing.assert_allclose(values, 0.2 * 12**0.5, rtol=0.35)


def test_systems_have_a_rate_of_their_own():
    """The updates of A, B and the step sizes are scaled, and nothing else is; the schedule is shared."""
    grads = {"mixer": {name: jnp.full((3,), 0.5) for name in ("log_A_real", "B", "log_step", "C", "kernel")}}
    cfg = OptimConfig(learning_rate=1e-2, warmup_steps=2, weight_decay=0.0, clip_norm=0)
    first = {}
    for rate in (None, 1e-3):
        optimiser = make_optimiser(dataclasses.replace(cfg, system_learning_rate=rate), 10)
        updates, _ = optimiser.update(grads, optimiser.init(grads), grads)
        first[rate] = {name: float(update[0]) for name, update in updates["mixer"].items()}
    for name, update in first[None].items():
        assert update == pytest.approx(-0.5e-2, rel=1e-4)
        own = name in ("log_A_real", "B", "log_step")
        assert first[1e-3][name] == pytest.approx(update * (0.1 if own else 1), rel=1e-6)
    with pytest.raises(UserError, match=r"optim.system_learning_rate=0\.0 must be positive"):
        OptimConfig(system_learning_rate=0.0)


def test_clipping_bounds_the_gradient():
    """Lion's first update has entries of size one whatever the gradient; plain Adam's moments show the clipped one."""
    cfg = OptimConfig(clip_norm=0.5, warmup_steps=0, weight_decay=0.0)
    optimiser = make_optimiser(cfg, 10)
    params = {"embedding": jnp.ones((4, 4))}
    _, state = optimiser.update(jax.tree.map(lambda x: 100 * x, params), optimiser.init(params), params)
    moment = next(leaf for leaf in jax.tree.leaves(state) if leaf.shape == (4, 4))
    np.testing.assert_allclose(jnp.linalg.norm(moment), 0.5 * (1 - cfg.b1), rtol=1e-5)
