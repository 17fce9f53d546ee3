"""Training on 8 virtual devices gives the losses of one, whatever the axes of the mesh.

`sharding_test.py` runs this where there are 8 devices.
"""

import functools
import itertools
import tempfile

import jax
import numpy as np
import pytest

from linear_transformer.errors import ConfigError
from linear_transformer.ops import sequence_parallel
from linear_transformer.training import sharding
from tests.training import runs

TOLERANCE = 5e-5  # relative, of fp32 losses of 6 steps: sums in another order
AXES = ("data", "fsdp", "tensor", "sequence")


@functools.cache
def text():
    return runs.write_text(__import__("pathlib").Path(tempfile.mkdtemp()) / "text")


def make_config(variant, mesh, **changes):
    small = {
        "num_steps": 6,
        "eval_every": 100,
        "checkpoint_every": 100,
        "log_every": 1,
        "data__batch_size": 8,
        "model__width": 64,
        "model__num_heads": 8,
        "model__feed_forward_width": 128,
    }
    config = runs.make_config(text(), variant, **(small | changes))
    for axis, size in zip(AXES, mesh, strict=True):
        config.mesh[axis] = size
    return config


def losses(config):
    with tempfile.TemporaryDirectory() as folder:
        workdir = __import__("pathlib").Path(folder) / "run"
        runs.run(config, workdir)
        return np.array([record["loss"] for record in runs.curve(workdir)])


@functools.cache
def single(variant, **changes):
    return losses(make_config(variant, (1, 1, 1, 1), **changes))


def check(variant, mesh, exchange="scan", **changes):
    config = make_config(variant, mesh, **changes)
    config.mesh.exchange = exchange
    np.testing.assert_allclose(losses(config), single(variant, **changes), TOLERANCE)


MESHES = [mesh for mesh in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(mesh) == 8]
MECHANISMS = ("softmax", "linear", "gla", "gated_delta_net", "transnormer_t2")


def test_try():
    check("gla", (1, 2, 2, 2))
