"""The frame of every command: exit status, and one line for what ends it."""

import pytest

from tests.training import runs

PROGRAM = """
from linear_transformer.errors import ConfigError, RunError
from linear_transformer.runtime import program

def main():
    raise {error}

program.run(main)
"""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        ("ConfigError('config.x is 3')", 2, "error: config.x is 3\n"),
        ("RunError('the disk is full')", 1, "error: the disk is full\n"),
        ("KeyboardInterrupt", 130, "error: interrupted by SIGINT\n"),
    ],
)
def test_one_line_and_the_exit_status(error, status, line):
    done = runs.execute(["-c", PROGRAM.format(error=error)])
    assert (done.returncode, done.stderr) == (status, line)
