"""The AL-RNN is the map of its paper, teacher forcing replaces what it says, and the analysis agrees with the map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.models.alrnn import ALRNNConfig
from seqmodels.models.alrnn_analysis import (
    Map,
    cycle,
    fixed_points,
    lyapunov_exponents,
    symbols,
    topological_entropy,
    transitions,
)

M, N, T = 6, 2, 9


@pytest.fixture(scope="module")
def variables():
    """Weights large enough that both signs occur."""
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "params": {
            "A": jax.random.uniform(keys[0], (M,), minval=0.2, maxval=0.8),
            "W": 0.3 * jax.random.normal(keys[1], (M, M)),
            "h": 0.3 * jax.random.normal(keys[2], (M,)),
            "L": jax.random.normal(keys[3], (M - N, N)),
        }
    }


@pytest.fixture(scope="module")
def series():
    return jax.random.normal(jax.random.key(9), (3, T, N))


def apply(variables, rectified, *args, **kwargs):
    return np.asarray(ALRNNConfig(M, rectified, N).make().apply(variables, *args, **kwargs))


def loop(variables, rectified, series, interval=None, strength=1.0):
    """Predictions, by the equations and for one sequence at a time."""
    A, W, h, L = (np.asarray(variables["params"][name], np.float64) for name in "AWhL")
    found = np.zeros((len(series), T - 1, N))
    for row, x in enumerate(np.asarray(series, np.float64)):
        z = np.concatenate([x[0], L @ x[0]])
        for t in range(1, T):
            phi = z.copy()
            for unit in range(M - rectified, M):
                phi[unit] = max(phi[unit], 0.0)
            z = A * z + W @ phi + h
            found[row, t - 1] = z[:N]
            if interval is not None and t % interval == 0:
                z[:N] = strength * x[t] + (1 - strength) * z[:N]
    return found


@pytest.mark.parametrize(
    ("rectified", "interval", "strength"), [(0, None, 1.0), (2, 3, 1.0), (2, 1, 1.0), (2, 1, 0.3), (M, 4, 1.0)]
)
def test_predictions_are_those_of_the_equations(variables, series, rectified, interval, strength):
    found = apply(variables, rectified, series, interval, strength)
    np.testing.assert_allclose(found, loop(variables, rectified, series, interval, strength), rtol=2e-5, atol=2e-5)


def test_no_rectified_unit_means_an_affine_map(variables):
    """A slice of the last zero units must not be a slice of all."""
    model = ALRNNConfig(M, 0, N).make()
    step = lambda z: model.apply(variables, z, method="step")  # noqa: E731
    a, b = jax.random.normal(jax.random.key(1), (2, 4, M))
    np.testing.assert_allclose(step(a) + step(b), step(a + b) + step(jnp.zeros((4, M))), rtol=1e-5, atol=1e-5)


def test_forcing_that_never_comes_is_a_free_run(variables, series):
    free = apply(variables, 2, series[:, 0], T - 1, method="free_run")[..., :N]
    for interval, strength in ((None, 1.0), (T, 1.0), (3, 0.0)):
        np.testing.assert_allclose(apply(variables, 2, series, interval, strength), free, rtol=1e-6, atol=1e-6)


def test_a_forced_value_does_not_enter_its_own_prediction(variables, series):
    """Changing row t changes predictions of later rows only."""
    changed = series.at[:, 4].add(1.0)
    before, after = (apply(variables, 2, rows, 1) for rows in (series, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.abs(before[:, 4:] - after[:, 4:]).max(-1) > 1e-4).any(1).all()


def test_no_gradient_flows_through_a_forced_step(variables, series):
    """With hidden units that see nothing, predictions after the forced step depend on row 0 through it alone."""
    W = variables["params"]["W"].at[N:].set(0)
    no_hidden = {"params": variables["params"] | {"L": jnp.zeros((M - N, N)), "W": W}}

    def later(start, strength):
        rows = series.at[:, 0].set(start)
        predictions = ALRNNConfig(M, 2, N).make().apply(no_hidden, rows, 4, strength)
        return (predictions[:, 4:] ** 2).sum()

    gradient = jax.jit(jax.grad(later), static_argnums=1)
    np.testing.assert_array_equal(gradient(series[:, 0], 1.0), 0)
    assert np.abs(gradient(series[:, 0], 0.5)).min() > 0


def test_weights_are_drawn_as_published():
    variables = ALRNNConfig(20, 2, 3).make().init(jax.random.key(0), jnp.zeros((1, 2, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 491
    params = variables["params"]
    assert (params["A"] > 0).all() and (params["A"] < 1).all()
    assert float(params["W"].std()) == pytest.approx(0.01, rel=0.15) and not params["h"].any()
    assert np.abs(params["L"]).max() <= np.sqrt(6 / 20)
    square = ALRNNConfig(3, 3, 3).make()
    assert square.init(jax.random.key(0), jnp.zeros((1, 2, 3)))["params"]["L"].shape == (0, 3)


def test_bad_arguments_are_refused(variables, series):
    for wrong in ({"observed": 0}, {"observed": 21}, {"rectified": -1}, {"rectified": 21}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ALRNNConfig(**wrong)
    for args, text in (((series[..., :1],), "N=2"), ((series, 0), "interval=0"), ((series, 1, 2.0), "strength=2"),
                       ((series[:, :1],), "at least 2")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            apply(variables, 2, *args)


# Analysis


@pytest.mark.parametrize("rectified", [0, 2, M])
def test_jacobians_are_derivatives_of_the_map(variables, rectified):
    system, model = Map.of(variables, rectified), ALRNNConfig(M, rectified, N).make()
    step = lambda z: model.apply(variables, z[None], method="step")[0]  # noqa: E731
    for z in np.asarray(jax.random.normal(jax.random.key(2), (3, M))):
        symbol = int(symbols(z[None], rectified)[0])
        np.testing.assert_allclose(system.jacobian(symbol), jax.jacfwd(step)(z), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(system.step(z), step(z), rtol=1e-5, atol=1e-5)


def test_symbols_read_like_binary_numbers():
    states = np.array([[9.0, -1, -1], [9, -1, 1], [-9, 1, -1], [9, 1, 1], [9, 0, 0]])
    np.testing.assert_array_equal(symbols(states, 2), [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(symbols(states, 0), [0] * 5)
    np.testing.assert_array_equal(symbols(states, 3), [4, 5, 2, 7, 4])


def test_fixed_points_are_fixed_where_they_are_real(variables):
    system = Map.of(variables, 2)
    found = fixed_points(system)
    assert len(found) == 4 and [point.symbols for point in found] == [(0,), (1,), (2,), (3,)]
    kept = {point.symbols: np.abs(system.step(point.points[0]) - point.points[0]).max() < 1e-9 for point in found}
    assert kept == {point.symbols: point.real for point in found}
    assert any(kept.values()) and not all(kept.values()), "both kinds occur in this case"
    assert [point.symbols for point in fixed_points(system, [2])] == [(2,)]
    with pytest.raises(ValueError, match=r"2\*\*2"):
        fixed_points(system, [4])


def test_cycles_of_a_tent_map():
    """``z -> 1 - 2 |z|`` in two units, the second of which is rectified: both points of its 2-cycle are known.

    ``|z| = 2 relu(z) - z``. The rectified unit holds the point itself; the first one copies the same rule.
    """
    system = Map(np.array([0.0, 2.0]), np.array([[0.0, -4.0], [0.0, -4.0]]), np.array([1.0, 1.0]), 1)
    fixed = {point.symbols[0]: point for point in fixed_points(system)}
    assert fixed[1].real and not fixed[1].stable and fixed[1].points[0, 1] == pytest.approx(1 / 3)
    assert fixed[0].real and fixed[0].points[0, 1] == pytest.approx(-1)
    two = cycle(system, (0, 1))
    assert two.real and not two.stable
    np.testing.assert_allclose(two.points[:, 1], [-0.2, 0.6])
    np.testing.assert_allclose(np.abs(two.multipliers).max(), 4)
    assert cycle(Map(np.ones(2), np.zeros((2, 2)), np.ones(2), 0), (0,)) is None, "a drift has no fixed point"
    with pytest.raises(ValueError, match="empty"):
        cycle(system, ())
    exponents = lyapunov_exponents(system, np.array([0.1, 0.1234]), 40, discard=5)
    assert exponents[0] == pytest.approx(np.log(2), rel=1e-6)


def test_transition_graph_and_its_entropy():
    graph = transitions(np.array([0, 1, 1, 2, 0, 1]), 2)
    np.testing.assert_array_equal(graph, [[0, 2, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    golden = np.array([[5, 3], [7, 0]])
    assert topological_entropy(golden) == pytest.approx(np.log((1 + np.sqrt(5)) / 2))
    assert topological_entropy(np.array([[0, 1], [0, 0]])) == 0
    assert topological_entropy(np.ones((2, 2), int)) == pytest.approx(np.log(2))


def test_exponents_of_a_linear_map():
    system = Map(np.array([0.5, 2.0, 1.0]), np.zeros((3, 3)), np.zeros(3), 1)
    found = lyapunov_exponents(system, np.array([1.0, 1e-9, 1.0]), 10, discard=1)
    np.testing.assert_allclose(found, np.log([2.0, 1.0, 0.5]), atol=1e-9)
