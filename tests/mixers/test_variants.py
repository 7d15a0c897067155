"""Options that change how a mixer computes, or what it carries, keep the laws about its state."""

import pytest

from seqmodels.mixers import (
    AttentionConfig,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    KDAConfig,
    LinearAttentionConfig,
    RotaryConfig,
)
from tests.contracts import laws

VARIANTS = {
    "window": AttentionConfig(num_heads=2, window=6, qk_norm=True, rotary=RotaryConfig(fraction=0.5, interleaved=True)),
    "rms": LinearAttentionConfig(num_heads=2, feature_map="identity", normalize="rms"),
    "no conv": GatedDeltaNetConfig(num_heads=1, num_v_heads=2, head_dim=8, conv_size=None, allow_neg_eigval=True),
    "bounded": KDAConfig(num_heads=1, num_v_heads=2, head_dim=8, lower_bound=-5.0),
    "gated": DeltaNetConfig(num_heads=2, conv_size=2, output_gate=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_step_by_step(name):
    laws.check_steps(VARIANTS[name])


def test_documents_in_a_window():
    laws.check_segments(VARIANTS["window"])
