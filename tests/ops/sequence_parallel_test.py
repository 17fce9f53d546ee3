"""A sequence over several devices is the sequence on one."""

import pytest

from tests import eight_devices

CASES = ("tests/ops/sequence_parallel_cases.py", "tests/ops/sharded_attention_cases.py")


@pytest.mark.parametrize("cases", CASES)
def test_on_several_devices(cases):
    eight_devices.run_tests(cases)


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES)
def test_on_several_devices_slow(cases):
    eight_devices.run_tests(cases, slow=True)
