"""The scaling benchmark and the comparison with torch, at toy sizes."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import delta_rule_vs_torch, scaling
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.ops import delta_rule

MIXER = {"GatedDeltaNet": GatedDeltaNetConfig.tiny()}


def test_exponent():
    assert scaling.exponent({1000: 3.0, 2000: 12.0, 4000: 48.0}) == pytest.approx(2)


def test_recurrent_mixers_are_those_with_a_fixed_state():
    found = scaling.recurrent()
    assert "GatedDeltaNet" in found
    assert "Attention" not in found


def test_length_rows():
    def quadratic(length):
        x = jnp.ones(length)
        return jax.jit(lambda x: x[:, None] * x[None]).lower(x).compile(), (x,)

    (row,) = scaling.length_rows((256, 512), {"quadratic": quadratic}, rounds=1)
    assert row["memory exponent"] == pytest.approx(2, abs=0.02)
    assert row["MB T=512"] == pytest.approx(4 * (512**2 + 512) / 1e6)
    assert np.isfinite(row["time exponent"])


def test_decode_rows():
    (row,) = scaling.decode_rows((5, 40), MIXER, rounds=1)
    assert row["us at 5"] > 0 and row["us at 40"] > 0
    assert row["ratio"] == pytest.approx(row["us at 40"] / row["us at 5"])


def test_unknown_mixer_is_one_line(capsys):
    assert scaling.main(["--mixer", "Attention"]) == 2
    assert "no recurrent mixer" in capsys.readouterr().err


def test_missing_torch_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert delta_rule_vs_torch.main(["--length", "64"]) == 2
    message = capsys.readouterr().err
    assert "needs torch" in message and message.count("\n") == 1


def test_our_side_of_the_comparison():
    arrays = delta_rule_vs_torch.inputs(64, heads=2, key=8, value=8)
    out, *gradients = delta_rule_vs_torch.ours(arrays)()
    expected, _ = delta_rule(arrays["q"], arrays["k"], arrays["v"], arrays["beta"], arrays["g"], impl="reference")
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert [g.shape for g in gradients] == [arrays[name].shape for name in delta_rule_vs_torch.NAMES]
