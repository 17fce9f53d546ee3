"""libtpu is left alone only where nothing speaks for a TPU, another accelerator or a choice."""

import glob
import importlib.metadata
import importlib.util
import os

import jax
import pytest

from linear_transformer.runtime import accelerators


@pytest.mark.parametrize(
    ("change", "platforms"),
    [
        ({}, "cpu"),
        ({"libtpu": False}, None),
        ({"device": "/dev/accel*"}, None),
        ({"device": "/dev/vfio/[0-9]*"}, None),
        ({"device": "/dev/nvidia[0-9]*"}, None),
        ({"plugins": ["cuda"]}, None),
        ({"variable": "TPU_WORKER_ID"}, None),
        ({"variable": "TPU_SKIP_MDS_QUERY"}, "cpu"),  # JAX sets it without a TPU
        ({"variable": "TPU_LIBRARY_PATH"}, "cpu"),  # libtpu does, as JAX imports it
        ({"variable": "JAX_PLATFORMS"}, None),
        ({"chosen": "tpu,cpu"}, "tpu,cpu"),
    ],
)
def test_leave_out_absent_tpu(change, platforms, monkeypatch):
    for name in [n for n in os.environ if n.startswith(("TPU_", "JAX_PLATFORMS"))]:
        monkeypatch.delenv(name)
    if "variable" in change:
        monkeypatch.setenv(change["variable"], "")
    libtpu = object() if change.get("libtpu", True) else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: libtpu)
    plugins = change.get("plugins", [])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(glob, "glob", lambda pattern: [pattern] * (pattern == change.get("device")))
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", change.get("chosen"))
    try:
        accelerators.leave_out_absent_tpu()
        assert jax.config.jax_platforms == platforms
    finally:
        jax.config.update("jax_platforms", before)
