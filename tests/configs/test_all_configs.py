"""Every recipe in configs/ builds, survives JSON, and says what it costs and what to expect."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from seqmodels.config import check_types, from_json, load, to_json
from seqmodels.sharding import unbox
from seqmodels.validate import check_model, check_schedule, check_vocabulary

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for path in (ROOT / "configs").rglob("[!_]*.py"))
SIZES = {"130m": 130e6, "340m": 340e6, "1b3": 1.3e9}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = load(path)
    check_types(experiment)
    assert from_json(to_json(experiment)) == experiment
    assert experiment.name == path.stem

    check_model(experiment.model)
    check_vocabulary(experiment)
    check_schedule(experiment)
    shapes = unbox(jax.eval_shape(experiment.model.make().init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    stated = re.search("|".join(SIZES), path.stem)
    if stated:
        assert count == pytest.approx(SIZES[stated.group()], rel=0.06), f"{count:,} parameters"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_docstring_states_command_duration_and_score(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, "a recipe begins with a docstring"
    assert f"python train.py --config {path.relative_to(ROOT).as_posix()}" in text.replace("\n", " ")
    assert re.search(r"Duration: \S", text) and re.search(r"[Ee]xpected score: \S", text)


def test_recipes_are_found():
    assert {"quickstart", "hybrid_1b3", "mqar"} <= {path.stem for path in RECIPES}
