"""Shapes and types of every public signature are checked while the tests run."""

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("linear_transformer", "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def _release_programs():
    """XLA keeps every program that a process compiled; thousands of them exhaust its mappings."""
    yield
    jax.clear_caches()
