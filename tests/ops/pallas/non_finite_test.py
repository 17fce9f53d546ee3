"""In the kernels, a token that is not finite changes no earlier chunk and no other document."""

import numpy as np
import pytest

from tests.ops import delta_non_finite_test as delta, non_finite_test as decay

DELTA = (((0, delta.T),), delta.PACKED)
DECAY = (((0, decay.T),), decay.DOCUMENTS)


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", ["scalar", pytest.param("vector", marks=pytest.mark.slow)])
def test_delta_rule(name, packed):
    for value in (np.nan, np.inf):
        delta.assert_contained(name, "pallas", DELTA[packed], 18, value)
    for array in delta.NAMES:
        delta.assert_contained(name, "pallas", DELTA[packed], 18, np.nan, (array,))
    for place in (24, 25, 26) if packed else ():  # beside the start of the next document
        delta.assert_contained(name, "pallas", DELTA[packed], place, np.nan)
    delta.assert_contained(name, "pallas", DELTA[packed], 25, 1e30, ("k", "v"))


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", ["additive", pytest.param("vector", marks=pytest.mark.slow)])
def test_additive_and_decay(name, packed):
    for value in (np.nan, np.inf):
        decay.assert_contained(name, "pallas", DECAY[packed], 50, value)
    for place in (61, 62) if packed else ():
        decay.assert_contained(name, "pallas", DECAY[packed], place, np.nan)
