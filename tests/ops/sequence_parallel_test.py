"""A sequence over several devices is the sequence on one: operations, layers and mixers."""

import pytest

from tests import eight_devices

CASES = (
    "tests/ops/sequence_parallel_cases.py",
    "tests/ops/sharded_attention_cases.py",
    "tests/nn/sharded_mixers_cases.py",
)


def test_on_several_devices():
    """One process for all files: starting it costs as much as several cases."""
    eight_devices.run_tests(*CASES)


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES)
def test_on_several_devices_slow(cases):
    eight_devices.run_tests(cases, slow=True)
