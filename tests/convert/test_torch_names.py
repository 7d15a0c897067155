"""Names and layouts of PyTorch parameters."""

import numpy as np
import pytest

from seqmodels.convert import torch_names


def test_layouts_and_names():
    torch = {
        "q_proj.weight": np.arange(6).reshape(2, 3),
        "q_proj.bias": np.arange(2),
        "q_conv1d.weight": np.arange(8).reshape(2, 1, 4),
        "gk_proj.0.weight": np.zeros((5, 3)),
        "g_norm_swish_gate.weight": np.ones(4),
        "A_log": np.zeros(2),
    }
    ours = torch_names.tree(torch)
    assert set(ours) == {"q_proj", "q_conv1d", "gk_proj", "o_norm", "A_log"}
    assert np.array_equal(ours["q_proj"]["kernel"], [[0, 3], [1, 4], [2, 5]])
    assert ours["q_proj"]["bias"].shape == (2,)
    assert np.array_equal(ours["q_conv1d"]["kernel"][:, 1], [4, 5, 6, 7])
    assert ours["gk_proj"]["down"]["kernel"].shape == (3, 5)
    assert ours["o_norm"]["scale"].shape == (4,)


def test_two_parameters_cannot_share_a_place():
    with pytest.raises(ValueError, match="maps to 'o_norm/scale', which is taken"):
        torch_names.tree({"o_norm.weight": np.ones(4), "g_norm.weight": np.ones(4)})
