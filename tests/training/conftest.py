"""One text and one unbroken run for all tests of the training loop."""

import pytest

from tests.training import runs


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return runs.write_text(tmp_path_factory.mktemp("data") / "text")


@pytest.fixture(scope="session")
def unbroken(text, tmp_path_factory):
    """(config, workdir, last state) of a run that nothing interrupted."""
    config = runs.make_config(text)
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    return config, workdir, runs.run(config, workdir)
