"""Every mixer found in the package keeps every law."""

import pytest

from seqmodels.mixers import discover
from tests.contracts.laws import ALL_LAWS, check_tpu

FOUND = discover()
LAWS = [pytest.param(law, marks=[pytest.mark.kernels] if law is check_tpu else []) for law in ALL_LAWS]


def test_the_ten_mixers_are_found():
    expected = {"LinearAttention", "RetNet", "GLA", "HGRN", "HGRN2", "DeltaNet", "GatedDeltaNet", "KDA", "Mamba2"}
    assert {f"{name}Config" for name in expected | {"Attention"}} <= set(FOUND)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("check_"))  # varies fastest
@pytest.mark.parametrize("name", FOUND)
def test_law(law, name):
    law(FOUND[name].tiny())
