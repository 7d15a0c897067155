"""Options that change how a mixer computes, or what it carries, keep the laws about its state."""

import jax
import jax.numpy as jnp
import pytest

from seqmodels.errors import UserError
from seqmodels.mixers import (
    AttentionConfig,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    KDAConfig,
    LinearAttentionConfig,
    MambaConfig,
    RotaryConfig,
)
from tests.contracts import laws

VARIANTS = {
    "window": AttentionConfig(num_heads=2, window=6, qk_norm=True, rotary=RotaryConfig(fraction=0.5, interleaved=True)),
    "rms": LinearAttentionConfig(num_heads=2, feature_map="identity", normalize="rms"),
    "no conv": GatedDeltaNetConfig(num_heads=1, num_v_heads=2, head_dim=8, conv_size=None, allow_neg_eigval=True),
    "bounded": KDAConfig(num_heads=1, num_v_heads=2, head_dim=8, lower_bound=-5.0),
    "fixed B and C": MambaConfig(state_size=4, selective=("dt",), inner_norm_eps=1e-6),
    "fixed": MambaConfig(state_size=4, selective=()),
    "gated": DeltaNetConfig(num_heads=2, conv_size=2, output_gate=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_step_by_step(name):
    laws.check_steps(VARIANTS[name])


def test_documents_in_a_window():
    laws.check_segments(VARIANTS["window"])


@pytest.mark.parametrize("selective", [(), ("dt",), ("B",), ("C",), ("dt", "B", "C")], ids="-".join)
def test_what_a_token_chooses(selective):
    """The rest is a parameter: a step size per channel, B and C per state."""
    shapes = jax.eval_shape(MambaConfig(state_size=4, selective=selective).make(32).init, *arguments(32))["params"]
    chosen = {"dt": 2, "B": 4, "C": 4}
    assert ("x_proj" in shapes) == bool(selective) and ("kernel" in shapes["dt_proj"]) == ("dt" in selective)
    if selective:
        assert shapes["x_proj"]["kernel"].value.shape == (64, sum(chosen[name] for name in selective))
    for name in ("B", "C"):
        assert (name in shapes) == (name not in selective)


def arguments(dim):
    return jax.random.key(0), jnp.zeros((1, 3, dim))


def test_selective_names_are_checked():
    with pytest.raises(UserError, match=r"MambaConfig\.selective=\('A',\); use some of \('dt', 'B', 'C'\)"):
        MambaConfig(selective=("A",))
