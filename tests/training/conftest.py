"""One text and one unbroken run for all tests of the training loop."""

import os

import jax
import pytest

from tests.training import runs


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """The tests start the same few programs many times; each is compiled once, in a new folder."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that the tests start
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        os.environ.pop(name.upper(), None)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return runs.write_text(tmp_path_factory.mktemp("data") / "text")


@pytest.fixture(scope="session")
def unbroken(text, tmp_path_factory):
    """(config, workdir, last state) of a run that nothing interrupted."""
    config = runs.make_config(text)
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    return config, workdir, runs.run(config, workdir)
