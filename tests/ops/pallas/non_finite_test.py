"""In the kernels, a token that is not finite spoils no earlier chunk and no other document."""

import numpy as np
import pytest

from tests.ops.non_finite_test import DOCUMENTS, T, assert_contained


@pytest.mark.parametrize("documents", [((0, T),), DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("name", ["additive", "vector"])
def test_contained(name, documents):
    for value in (np.nan, np.inf):
        assert_contained(name, "pallas", documents, 50, value)
    if len(documents) > 1:  # beside the start of the next document
        assert_contained(name, "pallas", documents, 61, np.nan)
        assert_contained(name, "pallas", documents, 62, np.nan)
