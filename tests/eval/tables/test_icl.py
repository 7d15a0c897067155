"""The table of in-context regression: the closed forms, the layer's symmetries, and claims that can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from configs.tables import _icl as recipe
from eval.in_context import InContext, Prompts, Regression, descend, layer, predict, ridge, step_matrix
from eval.tables import command, icl
from eval.tables.claims import broken, judge
from eval.tables.command import SCALES, distinct
from eval.tables.rows import Rows, from_csv, to_csv
from seqmodels.config import from_json, to_json
from seqmodels.errors import UserError

COLOURED = (4.0, 2.0, 1.0, 0.5, 0.25)
INVERSE = tuple(1 / value for value in COLOURED)

# Theory


def test_closed_forms_by_hand():
    assert Regression(1, 0.0, (1.0,), (1.0,)).step == pytest.approx(1 / 3)
    assert Regression(1, 0.0, (1.0,), (1.0,)).loss() == pytest.approx(2 / 3)
    assert Regression(10, 0.25).step == pytest.approx(1 / 16.25)
    assert Regression(10, 0.25).loss() == pytest.approx(0.25 + 5 * 6.25 / 16.25)
    assert [Regression(n).loss() for n in (1, 5, 20, 40)] == pytest.approx([4.560, 3.028, 1.440, 0.926], abs=5e-4)
    assert [Regression(10).loss(n) for n in (3, 30)] == pytest.approx([3.929, 7.380], abs=5e-4)


def test_extremes():
    assert Regression(10**7, 0.3).step * 10**7 == pytest.approx(1, rel=1e-5)
    assert Regression(10**7, 0.3).loss() == pytest.approx(0.3, abs=1e-4)
    assert Regression(10, 1e9).step == pytest.approx(0, abs=1e-8)
    inverse = Regression(10, 0.25, COLOURED, INVERSE)
    assert inverse.loss() == pytest.approx(Regression(10, 0.25).loss())
    np.testing.assert_allclose(inverse.step * COLOURED, 1 / 16.25)


@pytest.mark.parametrize("task", [Regression(3, 0.5), Regression(6, 0.25, COLOURED)], ids=["white", "coloured"])
def test_closed_forms_on_samples(task):
    """The formula is the mean on many prompts, also at another length, and no other step does better."""
    sample = jax.jit(task.sample, static_argnums=(1, 2))
    prompts = sample(jax.random.key(0), 100_000, task.examples)
    targets = np.asarray(prompts.y[:, -1], np.float64)
    losses = [np.mean((descend(prompts, scale * task.step) - targets) ** 2) for scale in (0.8, 1.0, 1.2)]
    assert losses[1] == pytest.approx(task.loss(), rel=0.02) and losses[1] < min(losses[0], losses[2])
    assert np.mean((ridge(prompts, task) - targets) ** 2) < 0.9 * losses[1]
    longer = sample(jax.random.key(1), 100_000, 9)
    off = np.mean((descend(longer, task.step) - np.asarray(longer.y[:, -1], np.float64)) ** 2)
    assert off == pytest.approx(task.loss(9), rel=0.03)


def test_bad_tasks_are_refused():
    for wrong in ({"examples": 0}, {"noise": -1.0}, {"covariance": (1.0,)}, {"prior": (1.0, 0.0, 1.0, 1.0, 1.0)}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Regression(**wrong)


# The layer


@pytest.fixture(scope="module")
def prompts():
    return jax.jit(lambda key: Regression(4).sample(key, 6))(jax.random.key(2))


@pytest.fixture(scope="module")
def ideal():
    """Weights that are one step of gradient descent: keys and queries see x, values see y."""
    task, eye = Regression(4), np.eye(6, dtype=np.float32)
    x, y = eye.copy(), np.zeros((6, 6), np.float32)
    x[5, 5], y[5, 5] = 0, 1
    kernels = {"q_proj": x * np.sqrt(6), "k_proj": x * task.step[0], "v_proj": y, "o_proj": eye}
    return {"params": {name: {"kernel": jnp.asarray(kernel)} for name, kernel in kernels.items()}}


def test_a_layer_can_be_one_step_of_gradient_descent(ideal, prompts):
    np.testing.assert_allclose(
        predict(ideal, prompts.tokens), descend(prompts, Regression(4).step), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(step_matrix(ideal, 5), np.diag(Regression(4).step), atol=1e-6)


def test_a_layer_does_not_see_the_answer_or_the_order(prompts):
    drawn = layer(6).init(jax.random.key(0), prompts.tokens)
    found = predict(drawn, prompts.tokens)
    other = prompts._replace(y=prompts.y.at[:, -1].add(5.0))
    np.testing.assert_array_equal(predict(drawn, other.tokens), found)
    mixed = np.r_[2, 0, 3, 1, 4]
    np.testing.assert_allclose(
        predict(drawn, Prompts(prompts.x[:, mixed], prompts.y[:, mixed]).tokens), found, rtol=1e-4, atol=1e-5
    )


def test_ridge_is_the_posterior_mean():
    """As many examples as dimensions and no noise: it knows the answer."""
    task = Regression(5, 0.0)
    prompts = task.sample(jax.random.key(4), 20)
    np.testing.assert_allclose(ridge(prompts, task), prompts.y[:, -1], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_training_finds_the_step():
    found = InContext(Regression(10, 0.25), steps=500, held_out=20_000, lengths=()).run(None)
    assert found["icl/loss"] == pytest.approx(found["icl/step_loss"], rel=0.01)
    assert found["icl/step"] == pytest.approx(1 / 16.25, rel=0.04)


# The table


@pytest.mark.parametrize("scale", SCALES)
def test_cells(scale):
    cells = distinct(icl.cells(scale))
    for cell in cells:
        assert from_json(to_json(cell.job)) == cell.job
        assert cell.job.task.examples == cell.labels["examples"] and cell.job.seed == cell.labels["seed"]
    assert (*recipe.MIDDLE, "white") in {(c.labels["examples"], c.labels["noise"], c.labels["inputs"]) for c in cells}


def test_one_cell_of_a_few_steps(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "COMMITTED", tmp_path / "committed")
    words = ["--scale", "tiny", "--cells", "white_n2_*"]
    assert command.entry(icl.TABLE)([*words, "--out", str(tmp_path / "out"), "--publish"]) == 0
    assert "cell 1 of 1" in capsys.readouterr().out
    (row,) = from_csv((tmp_path / "out/results.csv").read_text())
    assert {"icl/loss", "icl/step", "icl/ridge", "icl/matrix"} <= set(row)
    assert (tmp_path / "committed/icl/tiny/figure.png").stat().st_size > 10_000


def study(**changes):
    """Rows that agree with every claim, or with all but those that `changes` (metric to factor) contradict."""
    rows = []
    for cell in icl.cells("laptop"):
        task = cell.job.task
        metrics = {
            "icl/loss": 1.002 * task.loss(), "icl/step_loss": task.loss(), "icl/closed": task.loss(),
            "icl/ridge": 0.5 * task.loss(), "icl/step": task.step.mean(), "icl/closed_step": task.step.mean(),
            "icl/matrix": 0.05,
            **{f"icl/{name}@{n}": task.loss(n) for name in ("loss", "closed") for n in (3, 30)},
        }  # fmt: skip
        for name, factor in changes.items():
            metrics[f"icl/{name}"] *= factor
        rows.append(dict(cell.labels) | {name: float(value) for name, value in metrics.items()})
    return Rows(tuple(rows))


def test_claims_hold_on_rows_that_agree_with_them():
    for rows in (study(), from_csv(to_csv(study()))):
        verdicts = [judge(claim, rows) for claim in icl.CLAIMS]
        assert all(verdict.status == "holds" for verdict in verdicts), verdicts


BAD = [
    ("The trained layer's loss", {"loss": 1.02}),
    ("That loss", {"closed": 1.1}),
    ("The learned step size", {"step": 0.95}),
    ("With white inputs", {"matrix": 5.0}),
    ("With coloured inputs", {"matrix": 5.0}),
    ("Ridge", {"ridge": 2.1}),
    ("One step does not", {"loss@30": 0.5}),
    ("One step does not", {"loss@3": 1.3}),
]


@pytest.mark.parametrize(("text", "changes"), BAD, ids=str)
def test_claims_fail_on_rows_that_contradict_them(text, changes):
    bad = broken([judge(claim, study(**changes)) for claim in icl.CLAIMS], partial=True)
    assert [v for v in bad if v.claim.text.startswith(text) and any(c.isdigit() for c in v.evidence)], bad


def test_every_claim_can_fail():
    assert all(any(claim.text.startswith(text) for text, _ in BAD) for claim in icl.CLAIMS)
    assert {judge(claim, Rows(())).status for claim in icl.CLAIMS} == {"not measured"}


def test_markdown_and_figure_show_every_number():
    assert "| white | 10 | 0.25 | 0 | 2.177 | 2.173 | 2.173 | 1.087 | 0.0615 | 0.0615 | 0.050 |" in icl.markdown(
        study()
    )
    figure = Figure()
    icl.draw(study(), figure)
    assert [len(axes.lines) for axes in figure.axes] == [9, 6]
    icl.draw(Rows(()), Figure())
