"""Tests that need 8 devices run in a process of their own, where the CPU is 8 virtual ones.

They are in files that are no `*_test.py`, so that only a test that starts such a process runs them.
"""

import subprocess

from tests.training.runs import ROOT, command

FLAGS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def run_tests(*paths: str, slow: bool = False) -> None:
    """Runs the tests of files of the repository and fails with what they print."""
    marked = "slow" if slow else "not slow"
    arguments = ["-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", "-m", marked, *paths]
    argv, environment = command(arguments, **FLAGS)
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600 if slow else 600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
