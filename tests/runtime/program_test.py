"""The frame of every command: exit status, and one line for what ends it."""

import pytest

from tests.training import runs

PROGRAM = """
import threading
import time
from linear_transformer.errors import ConfigError, RunError
from linear_transformer.runtime import program

def save():
    time.sleep(0.5)
    raise RuntimeError("Event loop is closed")

def main():
    if {late}:
        threading.Thread(target=save).start()
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
    late = error.startswith("RunError")  # a thread of the save that failed fails later
    done = runs.execute(["-c", PROGRAM.format(error=error, late=late)])
    assert (done.returncode, done.stderr) == (status, line)
