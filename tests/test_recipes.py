"""The recipes of CONTRIBUTING.md do what they say."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.ops import dispatch
from tests.contracts.laws import ALL_LAWS

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


def recipe(name: str, folder: Path):
    """The module that the guide's code block after ``<!-- recipe: name -->`` makes."""
    found = re.search(rf"<!-- recipe: {name} -->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found, f"CONTRIBUTING.md has no recipe {name!r}"
    path = folder / f"recipe_{name}.py"
    path.write_text(found.group(1))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mixer(tmp_path_factory):
    return recipe("mixer", tmp_path_factory.mktemp("recipe"))


@pytest.mark.parametrize("law", ALL_LAWS, ids=lambda law: law.__name__)
def test_the_mixer_recipe_passes_every_law(mixer, law):
    law(mixer.EMAConfig.tiny())


def test_the_kernel_recipe_matches_the_reference(tmp_path):
    implementation = recipe("kernel", tmp_path).IMPLEMENTATION
    keys = jax.random.split(jax.random.key(0), 3)
    a, b = jax.nn.sigmoid(jax.random.normal(keys[0], (2, 19, 4))), jax.random.normal(keys[1], (2, 19, 4))
    state = jax.random.normal(keys[2], (2, 4))
    expected, final = ops.linear_scan(a, b, state=state, impl="reference")
    with ops.interpret_kernels():
        assert implementation.supports(a, b, state, None) is None
        h, last = dispatch.dispatch("linear_scan", "pallas_tpu", {"pallas_tpu": implementation}, a, b, state, None)
    np.testing.assert_allclose(h, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(last, final, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="segment_ids are not supported"):
        dispatch.dispatch("linear_scan", "pallas_tpu", {"pallas_tpu": implementation}, a, b, state, jnp.ones((2, 19)))
