"""Every mixer on a sequence over several devices is the mixer on one."""

import pytest

from tests import eight_devices

CASES = "tests/nn/sharded_mixers_cases.py"


def test_on_several_devices():
    eight_devices.run_tests(CASES)


@pytest.mark.slow
def test_on_several_devices_slow():
    eight_devices.run_tests(CASES, slow=True)
