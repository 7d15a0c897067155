"""Every mixer found in the package keeps every law."""

import pytest

from seqmodels.mixers import discover
from tests.contracts.laws import ALL_LAWS

FOUND = discover()


def test_the_ten_mixers_are_found():
    expected = {"LinearAttention", "RetNet", "GLA", "HGRN", "HGRN2", "DeltaNet", "GatedDeltaNet", "KDA", "Mamba2"}
    assert {f"{name}Config" for name in expected | {"Attention"}} <= set(FOUND)


@pytest.mark.parametrize("law", ALL_LAWS, ids=lambda law: law.__name__.removeprefix("check_"))  # varies fastest
@pytest.mark.parametrize("name", FOUND)
def test_law(law, name):
    law(FOUND[name].tiny())
