"""The measures of reconstruction have the values that they are known to have."""

import numpy as np
import pytest

from eval.dynamics import LAPLACE, mixture_divergence, spectral_distance, state_space_divergence

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.standard_normal((4000, 3))


def test_nothing_parts_a_trajectory_from_itself():
    assert state_space_divergence(NOISE, NOISE) == 0
    assert spectral_distance(NOISE, NOISE) == 0
    assert mixture_divergence(NOISE, NOISE) == pytest.approx(0, abs=1e-12)


def test_state_space_divergence_by_hand():
    """Three quarters and a quarter of the truth lie in two bins, of what is generated one half each."""
    truth = np.array([[0.0], [0.0], [0.0], [1.0]])
    generated = np.array([[0.0], [1.0]])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert state_space_divergence(truth, generated, bins=2) == pytest.approx(expected, abs=1e-4)


def test_an_unvisited_bin_costs_what_the_constant_says():
    truth = np.array([[0.0], [1.0]])
    cost = 0.5 * np.log(0.5 / 1.0) + 0.5 * np.log(0.5 / (LAPLACE / 4))
    assert state_space_divergence(truth, np.zeros((4, 1)), bins=2) == pytest.approx(cost, abs=1e-4)


def test_order_in_time_does_not_matter_to_states():
    assert state_space_divergence(NOISE, NOISE[::-1]) == 0
    assert state_space_divergence(NOISE, 2 * NOISE) > state_space_divergence(NOISE, 1.2 * NOISE) > 0


def test_what_is_generated_outside_is_missing_inside():
    bad = NOISE.copy()
    bad[:100] = 1e30
    bad[100:200] = np.nan
    bad[200:300] = -np.inf
    inside = state_space_divergence(NOISE, NOISE[300:])
    assert state_space_divergence(NOISE, bad) == pytest.approx(inside - np.log(3700 / 4000), abs=1e-4)
    spread = NOISE.min(0) + (NOISE.max(0) - NOISE.min(0)) * RANDOM.random((4000, 3))
    for nowhere in (np.nan, np.inf, 1e9):
        lost = state_space_divergence(NOISE, np.full((4000, 3), nowhere), bins=5)
        even = state_space_divergence(NOISE, spread, bins=5)
        assert np.isfinite(lost) and lost > 3 * even, "worse than an even histogram"


def test_mixture_divergence_of_two_points():
    """KL of two unit Gaussians whose means are two apart is two."""
    a, b = np.zeros((5, 2)), np.array([[2.0, 0.0]] * 3)
    assert mixture_divergence(a, b, draws=20_000) == pytest.approx(2.0, abs=0.06)
    assert mixture_divergence(a, b, variance=4.0, draws=20_000) == pytest.approx(0.5, abs=0.03)
    assert mixture_divergence(a, np.full((3, 2), np.nan)) == np.inf


@pytest.mark.parametrize("lost", [np.nan, np.inf, 1e200])
def test_a_mixture_pays_for_rows_that_are_lost(lost):
    """A run of which half is lost has half the density everywhere."""
    half = np.concatenate([NOISE[:2000], np.full((2000, 3), lost)])
    whole = mixture_divergence(NOISE, NOISE[:2000])
    assert mixture_divergence(NOISE, half) == pytest.approx(whole + np.log(2), abs=1e-9)


@pytest.mark.parametrize("measure", [mixture_divergence, state_space_divergence])
def test_empty_trajectories_are_refused(measure):
    with pytest.raises(ValueError, match="generated has no rows"):
        measure(NOISE, NOISE[:0])
    with pytest.raises(ValueError, match="truth has no rows"):
        measure(NOISE[:0], NOISE)


def test_spectral_distance_ignores_place_and_scale():
    other = np.cumsum(NOISE, 0)
    distance = spectral_distance(NOISE, other)
    assert 0.3 < distance <= 1
    assert spectral_distance(3 * NOISE - 7, 0.1 * other + 2) == pytest.approx(distance, abs=1e-9)
    assert spectral_distance(other, NOISE) == pytest.approx(distance, abs=1e-9)


def test_two_tones_are_as_far_apart_as_can_be():
    time = np.arange(1000)[:, None] / 1000 * 2 * np.pi
    assert spectral_distance(np.sin(50 * time), np.sin(200 * time), smoothing=0) == pytest.approx(1, abs=1e-6)
    assert spectral_distance(np.sin(50 * time), np.cos(50 * time), smoothing=0) == pytest.approx(0, abs=1e-6)
    near, far = (spectral_distance(np.sin(50 * time), np.sin(other * time)) for other in (60, 90))
    assert 0 < near < far < 1, "smoothed spectra overlap"


@pytest.mark.parametrize("bad", [0.0, 0.1, np.nan, np.inf])
def test_a_dead_channel_counts_as_one(bad):
    run = NOISE.copy()
    run[:, 1] = bad
    assert spectral_distance(NOISE, run) == pytest.approx(1 / 3)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="cut the longer one"):
        spectral_distance(NOISE, NOISE[:10])
    with pytest.raises(ValueError, match="transpose"):
        state_space_divergence(NOISE, NOISE.T)
    with pytest.raises(ValueError, match="at most 10"):
        state_space_divergence(np.zeros((5, 11)), np.zeros((5, 11)))
    with pytest.raises(ValueError, match="no rows"):
        state_space_divergence(np.zeros((0, 2)), np.zeros((5, 2)))


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf])
def test_a_truth_without_range_is_refused(bad):
    """Not even its own rows would lie inside of its histogram, and any run would score 0."""
    truth = NOISE.copy()
    truth[:, 1] = bad
    with pytest.raises(ValueError, match=r"channels \[1\] are constant or not finite"):
        state_space_divergence(truth, NOISE)
