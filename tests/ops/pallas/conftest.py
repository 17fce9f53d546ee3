"""Blocks of 4 small chunks, for several blocks in few tokens."""

import pytest

from linear_transformer.ops.pallas import layout
from tests.ops.pallas.interpreted import CHUNK


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(layout, "TOKENS_PER_BLOCK", 4 * CHUNK)
