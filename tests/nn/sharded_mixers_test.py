"""Every mixer on a sequence over several devices is the mixer on one."""

import pytest

from linear_transformer.nn.mixers import needs_whole_rows
from tests import eight_devices

CASES = "tests/nn/sharded_mixers_cases.py"


def test_on_several_devices():
    eight_devices.run_tests(CASES)


@pytest.mark.slow
def test_on_several_devices_slow():
    eight_devices.run_tests(CASES, slow=True)


def test_which_mixers_need_whole_rows():
    assert needs_whole_rows("lsh", {})
    assert not needs_whole_rows("performer", {})
    assert not needs_whole_rows("parallel", {})
    assert needs_whole_rows("parallel", {"branches": {"linear": {}, "flash": {}}})
