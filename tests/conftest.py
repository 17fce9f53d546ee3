"""Shapes and types of every public signature are checked while the tests run."""

import pathlib

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("linear_transformer", "beartype.beartype")

_MAPPINGS = pathlib.Path("/proc/self/maps")  # a line each; only Linux has it
_MAX_MAPPINGS = 20_000  # Linux allows a process 65,530, and XLA crashes when it gets no more


@pytest.fixture(scope="module", autouse=True)
def _release_programs_of_a_module():
    """XLA keeps every program that a process compiled."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _release_programs():
    """A module of hundreds of tests compiles more programs than a process may map."""
    yield
    if _MAPPINGS.exists() and _MAPPINGS.read_bytes().count(b"\n") > _MAX_MAPPINGS:
        jax.clear_caches()
