"""While the tests run, the shapes and types of every signature with arrays are checked."""

import gc
import pathlib

import jax
import pytest
from jaxtyping import install_import_hook

_PACKAGE = pathlib.Path(__file__).parents[1] / "linear_transformer"
_COMPUTING = ("inference", "models", "nn", "ops", "tasks")


def _checked():
    """Modules that compute with arrays; the functions of others take less time than a check."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_PACKAGE).with_suffix("").parts
        if parts[0] in _COMPUTING or "jaxtyping" in path.read_text(encoding="utf-8"):
            yield ".".join((_PACKAGE.name, *parts))


install_import_hook(list(_checked()), "beartype.beartype")

# Traces make millions of objects that live on; looking at all of them takes a tenth of the time.
gc.set_threshold(200_000, 20, 20)

_MAPPINGS = pathlib.Path("/proc/self/maps")  # a line each; only Linux has it
_MAX_MAPPINGS = 20_000  # Linux allows a process 65,530, and XLA crashes when it gets no more


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than cores, since tests of processes and of signals wait a part of their time."""
    return (yield) + 1


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
