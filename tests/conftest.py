"""Shapes and types of every public signature are checked while the tests run."""

import gc
import pathlib

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("linear_transformer", "beartype.beartype")

# Traces make millions of objects that live on; looking at all of them takes a tenth of the time.
gc.set_threshold(200_000, 20, 20)

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


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """One text for all tests of training."""
    from tests.training import runs

    return runs.write_text(tmp_path_factory.mktemp("data") / "text")


@pytest.fixture(scope="session")
def unbroken(text, tmp_path_factory):
    """(config, workdir, last state) of a run that nothing interrupted."""
    from tests.training import runs

    config = runs.make_config(text)
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    return config, workdir, runs.run(config, workdir)
