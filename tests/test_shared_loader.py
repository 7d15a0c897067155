import pytest

from tests.shared import golden


@pytest.mark.shared
def test_golden_loader_returns_arrays_attributes_and_tolerances():
    arrays, attrs, tolerances = golden("ops/gla")
    assert arrays["q"].shape == (2, 97, 2, 16)
    assert attrs["scale"] == 0.25
    assert tolerances["o"] == 5e-6
