"""The flows: the integrator is of fourth order, and the splits are standardised stretches of one trajectory."""

import numpy as np
import pytest

from seqmodels.data.dynamics import Flow, Lorenz63, Rossler, integrate
from seqmodels.errors import UserError

SMALL = {"train_rows": 2000, "valid_rows": 300, "test_rows": 200, "transient": 100, "gap": 50}
FLOWS = [Lorenz63(**SMALL), Rossler(**SMALL)]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: type(flow).__name__)
def test_the_integrator_is_of_fourth_order(flow: Flow):
    exact = integrate(flow.velocity, flow.start, 0.4, 1, 4000)[-1]
    errors = [np.abs(integrate(flow.velocity, flow.start, 0.4, 1, n)[-1] - exact).max() for n in (40, 80, 160)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 4, atol=0.25)


def test_the_integrator_knows_an_oscillator():
    found = integrate(lambda x, y, z: (y, -x, 0.0), (0.0, 1.0, 3.0), 0.1, 63, 4)
    time = 0.1 * np.arange(64)
    np.testing.assert_allclose(found, np.stack([np.sin(time), np.cos(time), 0 * time + 3], 1), atol=1e-6)


def test_many_starts_at_once():
    flow = FLOWS[0]
    starts = np.array([[1.0, 2.0, 20.0], [3.0, -1.0, 10.0]])
    together = integrate(flow.velocity, tuple(starts.T), 0.01, 30)
    for number, start in enumerate(starts):
        np.testing.assert_array_equal(together[:, :, number], integrate(flow.velocity, tuple(start), 0.01, 30))


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: type(flow).__name__)
def test_splits(flow: Flow):
    train, valid, test = (flow.series(split) for split in ("train", "valid", "test"))
    assert [len(train), len(valid), len(test)] == [2000, 300, 200] and train.dtype == np.float64
    np.testing.assert_allclose([train.mean(0), train.std(0)], [[0] * 3, [1] * 3], atol=1e-12)
    again = type(flow)(**{**SMALL, "test_rows": 150})
    np.testing.assert_array_equal(again.series("test"), test[:150])
    longer = type(flow)(**{**SMALL, "train_rows": 2400}).series("train")
    whole = (longer - longer[:2000].mean(0)) / longer[:2000].std(0)
    np.testing.assert_allclose(whole[2050:2350], valid, atol=1e-9, err_msg="valid follows train after the gap")
    with pytest.raises(UserError, match="did you mean 'train'"):
        flow.series("trian")


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: type(flow).__name__)
def test_centres_are_equilibria_inside_the_attractor(flow: Flow):
    for centre in flow.centres():
        np.testing.assert_allclose(flow.velocity(*centre), 0, atol=1e-12)
    series, centres = flow.series("train"), flow.standardised(flow.centres())
    assert (series.min(0) < centres).all() and (centres < series.max(0)).all()


def test_lorenz_lobes_are_where_they_are_known_to_be():
    root = np.sqrt(72)
    np.testing.assert_allclose(Lorenz63().centres(), [[root, root, 27], [-root, -root, 27]])


@pytest.mark.parametrize("wrong", [{"dt": 0.0}, {"substeps": 0}, {"test_rows": 1}, {"transient": -1}, {"gap": -300}])
def test_bad_sizes_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Lorenz63(**wrong)


def test_a_trajectory_that_overflows_is_refused():
    with pytest.raises(UserError, match="the trajectory overflows"):
        Lorenz63(dt=0.5, substeps=1, **SMALL).series("train")
