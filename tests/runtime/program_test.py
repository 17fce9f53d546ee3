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
        ("OSError(32, 'Broken pipe')", 1, "error: the output cannot be written (Broken pipe)\n"),
        ("OSError(28, 'No space')", 1, "error: the output cannot be written (No space)\n"),
    ],
)
def test_one_line_and_the_exit_status(error, status, line):
    late = error.startswith("RunError")  # a thread of the save that failed fails later
    done = runs.execute(["-c", PROGRAM.format(error=error, late=late)])
    assert (done.returncode, done.stderr) == (status, line)


def test_characters_that_the_output_does_not_have():
    ascii_only = "import sys\nsys.stdout.reconfigure(encoding='ascii')\n"
    program = PROGRAM.format(error="ConfigError(print('\\u2014 \\udcff'))", late=False)
    done = runs.execute(["-c", ascii_only + program])
    assert (done.returncode, done.stdout) == (2, "\\u2014 \\udcff\n")
