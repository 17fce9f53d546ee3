"""Training steps of the shipped configs, compiled for the TPUs that the configs name."""

import sys

import pytest

from linear_transformer.compile import ahead_of_time
from linear_transformer.runtime import accelerators
from tests.compile.effort import compiler_effort
from tests.layers import slow_except
from tests.training.shipped_configs_test import CASES, load

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux"),
    pytest.mark.tpu_compile,
]
__all__ = ["load"]  # a fixture

# One of each kind that `ahead_of_time_test.py` has not: a scan over split parameters, an image, an
# encoder with a decoder.
REPRESENTATIVE = (
    "lm/scale.py:linear,125m",
    "papers/hadjeres2021/piano_small.py",
    "papers/shen2021/fashion_mnist.py:efficient",
)


@pytest.fixture(scope="module", autouse=True)
def _environment():
    accelerators.prepare_environment()
    with compiler_effort(-1.0):
        yield


@pytest.mark.parametrize("case", slow_except(REPRESENTATIVE, CASES))
def test_fits(case, load):
    devices = accelerators.describe_devices(CASES[case][0])
    report = ahead_of_time.compile_training_step(load(case), devices)
    assert report.fits, report.lines()
    assert report.cost.flops > 0
    assert report.cost.unknown_loops == 0
