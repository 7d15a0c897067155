"""Parameter counts of released models, initial values, and refusals of configs that cannot be built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels.errors import UserError
from seqmodels.mixers import (
    AttentionConfig,
    Context,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    GLAConfig,
    HGRN2Config,
    KDAConfig,
    LinearAttentionConfig,
    Mamba2Config,
    RetNetConfig,
)
from seqmodels.mixers.attention import RotaryConfig
from seqmodels.sharding import unbox


def shapes(cfg, dim):
    mixer = cfg.make(dim)
    return unbox(jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 2, dim))))["params"]


def count(cfg, dim):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(cfg, dim)))


@pytest.mark.parametrize(
    ("dim", "layers", "total"),
    [
        (768, 24, 128_989_632),
        (1024, 48, 368_346_624),
        (1536, 48, 780_161_280),
        (2048, 48, 1_343_757_312),
        (2560, 64, 2_702_599_680),
    ],
)
def test_mamba2_has_the_released_sizes(dim, layers, total):
    norms, embedding = (layers + 1) * dim, 50288 * dim
    assert layers * count(Mamba2Config(), dim) + norms + embedding == total


def test_widths_follow_the_papers():
    assert shapes(GatedDeltaNetConfig(), 2048)["q_proj"]["kernel"].shape == (2048, 6 * 256)
    assert shapes(GatedDeltaNetConfig(), 2048)["v_proj"]["kernel"].shape == (2048, 6 * 512)
    assert shapes(GLAConfig(), 1024)["k_proj"]["kernel"].shape == (1024, 512)
    assert shapes(RetNetConfig(), 1024)["v_proj"]["kernel"].shape == (1024, 2048)
    assert count(AttentionConfig(), 1024) == 4 * 1024**2


@pytest.fixture(scope="module")
def initial():
    """Initial parameters of the mixers whose papers prescribe them, at a width that gives many heads."""
    configs = {
        "mamba2": Mamba2Config(head_dim=4),
        "gated": GatedDeltaNetConfig(num_heads=192, head_dim=2, conv_size=None),
        "kda": KDAConfig(num_heads=64, head_dim=4, conv_size=None),
    }

    @jax.jit
    def init(key):
        x, context = jnp.zeros((1, 1, 256)), Context(depth=4)
        return {name: unbox(cfg.make(256).init(key, x, context=context))["params"] for name, cfg in configs.items()}

    return jax.tree.map(np.asarray, init(jax.random.key(0)))


@pytest.mark.parametrize(("name", "low", "high"), [("mamba2", 1, 16), ("gated", 0, 16), ("kda", 1, 16)])
def test_initial_decays(initial, name, low, high):
    A = np.exp(initial[name]["A_log"])
    assert A.min() >= low * (1 - 1e-6) and A.max() <= high * (1 + 1e-6)
    assert abs(A.mean() - (low + high) / 2) < 2, "uniform"
    dt = np.logaddexp(0, initial[name]["dt_bias"])
    assert dt.min() >= 1e-3 * 0.999 and dt.max() <= 0.1 * 1.001
    assert abs(np.log(dt).mean() - np.log(1e-2)) < 0.35, "log-uniform"


def test_initial_projections(initial):
    bound = 256**-0.5
    weight, out = initial["mamba2"]["in_proj"]["kernel"], initial["mamba2"]["out_proj"]["kernel"]
    assert 0.98 * bound < np.abs(weight).max() <= bound
    bound = 512**-0.5 / 4**0.5  # inner width, four layers
    assert 0.98 * bound < np.abs(out).max() <= bound
    conv = initial["mamba2"]["conv1d"]
    assert max(np.abs(conv["kernel"]).max(), np.abs(conv["bias"]).max()) <= 0.5
    assert np.all(initial["mamba2"]["D"] == 1) and np.all(initial["mamba2"]["norm"]["scale"] == 1)
    assert abs(initial["gated"]["q_proj"]["kernel"].std() / 0.02 - 1) < 0.05


REFUSED = {
    "heads do not divide": (lambda: LinearAttentionConfig(num_heads=7).make(32), "num_heads=7 does not divide"),
    "heads do not divide 0.75 dim": (lambda: GatedDeltaNetConfig().make(100), "num_heads=6 does not divide"),
    "values do not divide": (lambda: GLAConfig(num_heads=4, expand_v=0.6).make(32), "does not divide dim \\* expand_v"),
    "no heads": (lambda: DeltaNetConfig(num_heads=0), "num_heads=0 must be positive"),
    "negative width": (lambda: DeltaNetConfig(conv_size=-4), "conv_size=-4 must be positive"),
    "value heads": (lambda: KDAConfig(num_heads=4, num_v_heads=6), "num_heads=4 does not divide num_v_heads=6"),
    "kv heads": (lambda: AttentionConfig(num_heads=4, num_kv_heads=3), "num_kv_heads=3 does not divide num_heads=4"),
    "window": (lambda: AttentionConfig(window=0), "window=0 must be positive"),
    "fraction": (lambda: RotaryConfig(fraction=1.5), "fraction=1.5 exceeds 1"),
    "odd phases": (lambda: RetNetConfig(num_heads=32).make(32), "even key size"),
    "feature map": (lambda: LinearAttentionConfig(feature_map="cube"), "feature_map='cube' is unknown"),
    "normaliser": (lambda: LinearAttentionConfig(feature_map="identity"), "needs weights >= 0"),
    "expansion": (lambda: HGRN2Config().make(100), "expand_ratio=128 does not divide dim=100"),
    "groups": (lambda: Mamba2Config(num_groups=5).make(64), "num_groups=5 does not divide"),
    "step sizes": (lambda: Mamba2Config(dt_min=0.2), "dt_min=0.2 exceeds dt_max=0.1"),
    "step limits": (lambda: Mamba2Config(dt_limit=(1.0, 0.5)), "not a range"),
    "lower bound": (lambda: KDAConfig(lower_bound=5.0), "lower_bound=5.0 must be negative"),
    "half a width": (lambda: DeltaNetConfig(conv_size=2.5), "conv_size=2.5 is not a whole number"),
    "infinite width": (lambda: KDAConfig(conv_size=float("inf")), "conv_size=inf must be finite"),
    "infinite values": (lambda: KDAConfig(expand_v=float("inf")), "expand_v=inf"),
    "fractional values": (lambda: KDAConfig(expand_v=1.001), "not a positive whole number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_configs_are_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
