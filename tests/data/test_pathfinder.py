"""Pathfinder: labels are traced from the strokes, the classes differ by one disc only, and strokes keep apart."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from seqmodels.data.classification import intensities, labels
from seqmodels.data.pathfinder import Pathfinder, Scene
from seqmodels.errors import UserError

TASKS = {
    "32": Pathfinder(contour_length=9),
    "64": Pathfinder(seq_len=4096, contour_length=6),
    "128": Pathfinder(seq_len=16384, contour_length=8),
}


@pytest.fixture(params=TASKS.values(), ids=TASKS, scope="module")
def drawn(request: pytest.FixtureRequest) -> tuple[Pathfinder, list[Scene]]:
    task: Pathfinder = request.param
    return task, [task.scene(np.random.default_rng(seed)) for seed in range(4)]


def separations(scene: Scene) -> np.ndarray:
    """Smallest distances between points of every two dashes [P,P], by trying 41 points of each."""
    share = np.linspace(0, 1, 41)
    points = scene.paddles[:, :1] * (1 - share) + scene.paddles[:, 1:] * share
    return np.array([abs(a[:, None, None] - points).min(axis=(0, 2)) for a in points])


def reachable(scene: Scene, start: complex) -> set[int]:
    """Dashes that are joined to the one with an end at `start` by steps over gaps."""
    near = separations(scene) <= 2 * scene.margin + 1e-6
    frontier = np.flatnonzero((scene.paddles == start).any(axis=1)).tolist()
    seen = set(frontier)
    while frontier:
        frontier = [int(i) for i in np.flatnonzero(near[frontier].any(axis=0)) if i not in seen]
        seen |= set(frontier)
    return seen


def test_labels_can_be_traced(drawn: tuple[Pathfinder, list[Scene]]) -> None:
    """Whoever steps over gaps from a path's beginning gets to its end, over all of its dashes, and to no other path."""
    task, scenes = drawn
    for scene in scenes:
        for path in (0, 1):
            seen = reachable(scene, scene.tips[path, 0])
            own, other = (np.flatnonzero((scene.paddles == scene.tips[p, 1]).any(axis=1))[0] for p in (path, 1 - path))
            assert own in seen and other not in seen
            assert len(seen) == task.contour_length


def test_strokes_keep_apart_and_inside(drawn: tuple[Pathfinder, list[Scene]]) -> None:
    task, scenes = drawn
    g = task.geometry
    for scene in scenes:
        between = separations(scene) + 1e3 * np.eye(len(scene.paddles))
        linked = between <= 2 * scene.margin + 1e-6
        assert between[~linked].min() >= 2 * scene.margin + g.thickness - 0.05  # the points tried are no continuum
        assert linked.sum(axis=1).max() <= 2
        coordinates = np.concatenate([scene.paddles.real, scene.paddles.imag])
        assert coordinates.min() >= 1 and coordinates.max() <= g.size - 2
        np.testing.assert_allclose(abs(scene.paddles[:, 1] - scene.paddles[:, 0]), g.paddle)
        assert abs(scene.tips[0, 0] - scene.tips[1, 0]) == pytest.approx(g.seed_distance)
        missing = 2 * task.contour_length + g.distractors * task.distractor_length - len(scene.paddles)
        assert missing % task.distractor_length == 0 and missing >= 0


def test_only_the_second_disc_tells_the_classes_apart(drawn: tuple[Pathfinder, list[Scene]]) -> None:
    task, scenes = drawn
    for scene in scenes:
        apart, joined = (task.picture(scene, 0, label) for label in (0, 1))
        assert apart.min() >= 0 and joined.max() <= 1
        y, x = np.nonzero(apart != joined)
        ends = scene.tips[:, 1]
        distance = abs((x + 1j * y)[:, None] - ends).min(axis=1)
        assert len(x) and distance.max() < task.geometry.radius + 0.5
        for picture, path in ((apart, 1), (joined, 0)):
            for tip in (scene.tips[0, 0], ends[path]):
                assert picture[round(tip.imag), round(tip.real)] == 1
        strokes = np.rint(scene.paddles.mean(axis=1))
        assert (joined[strokes.imag.astype(int), strokes.real.astype(int)] > 0).all()


def test_rows_are_pictures() -> None:
    task = Pathfinder(contour_length=3, distractors=0)
    batch = next(task.make("train", batch_size=64))
    assert batch["segment_ids"].all() and batch["loss_mask"].sum() == batch["loss_mask"][:, -1].sum() == 64
    np.testing.assert_array_equal(labels(batch), batch["slices"])
    assert 12 <= labels(batch).sum() <= 52  # five deviations about 32
    assert batch["tokens"].max() == 255 and intensities(batch).max() == 1
    assert intensities(batch).shape == (64, 1024, 1) and intensities(batch).dtype == np.float32


def test_the_hard_form_can_be_drawn() -> None:
    scene = Pathfinder(seq_len=4096).scene(np.random.default_rng(0))
    assert len(scene.paddles) >= 28


def test_pictures_stay_as_they_are() -> None:
    """What was drawn before the search for room was made faster: a row is known by its number for good."""
    for task, expected in ((Pathfinder(contour_length=6), "75c35e8af635"), (Pathfinder(), "ab506458bff5")):
        rows = task.rows("test", 3)
        digest = hashlib.sha256(b"".join(rows[i]["tokens"].tobytes() for i in range(6)))
        assert digest.hexdigest().startswith(expected)


def test_impossible_sizes_are_refused() -> None:
    for fields, message in [
        ({"seq_len": 1000}, r"seq_len: 1000 pixels; use 1024 \(32x32\)"),
        ({"contour_length": 0}, r"contour_length: 0 dashes"),
        ({"contour_length": float("nan")}, r"contour_length: nan dashes"),
        ({"contour_length": 2.5}, r"contour_length: 2\.5 dashes; use a whole number"),
        ({"distractor_length": True}, r"distractor_length: True dashes"),
        ({"distractors": -1}, r"distractors: -1"),
        ({"distractors": 1.5}, r"distractors: 1\.5; use a whole number"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            Pathfinder(**fields)
        assert "\n" not in str(caught.value)


def test_paths_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqmodels.data.pathfinder.RESTARTS", 1)
    monkeypatch.setattr("seqmodels.data.pathfinder.STEPS_BACK", 2)
    with pytest.raises(UserError, match="two paths of 500 dashes do not fit into 32x32 pixels"):
        Pathfinder(contour_length=500).scene(np.random.default_rng(0))
