"""Several devices train to the same numbers as one; the devices are virtual, of one CPU."""

import json

import jax
import numpy as np
import pytest

from linear_transformer.errors import ConfigError
from linear_transformer.training import sharding
from tests.training import runs

FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
MESHES = {"data": (4, 1), "both": (2, 2), "fsdp": (1, 4)}


def make_config(text, mesh=(1, 1), **changes):
    config = runs.make_config(text, model__width=64, model__feed_forward_width=128, **changes)
    config.mesh.data, config.mesh.fsdp = mesh
    return config


def losses(workdir, split="train"):
    return np.array([record["bits_per_byte"] for record in runs.curve(workdir, split)])


def execute(config, workdir):
    done = runs.execute(runs.arguments(config, workdir), **FOUR)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def single(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("single") / "run"
    runs.run(make_config(text), workdir)
    return workdir


@pytest.mark.parametrize("mesh", MESHES)
def test_several_devices_are_one(mesh, text, single, tmp_path):
    """Only the order of sums differs."""
    output = execute(make_config(text, MESHES[mesh]), tmp_path / "run")
    assert "4 x cpu" in output
    for split in ("train", "validation"):
        np.testing.assert_allclose(losses(tmp_path / "run", split), losses(single, split), 2e-5)


def test_a_checkpoint_goes_on_with_other_devices(text, single, tmp_path):
    config = make_config(text, MESHES["both"], num_steps=6)
    execute(config, tmp_path / "run")
    for mesh, steps in ((MESHES["fsdp"], 9), ((1, 1), 12)):
        execute(make_config(text, mesh, num_steps=steps), tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run")[-1], losses(single)[-1], 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["softmax", "gla", "gated_delta_net", "transnormer_t2"])
def test_mechanisms(variant, text, tmp_path):
    runs.run(make_config(text, variant=variant), tmp_path / "one")
    execute(make_config(text, MESHES["both"], variant=variant), tmp_path / "four")
    np.testing.assert_allclose(losses(tmp_path / "four"), losses(tmp_path / "one"), 5e-5)


def test_parameters_are_split(text, tmp_path):
    """What a device holds of the state is about a quarter."""
    code = f"""
import json, jax
from tests.training import sharding_test, runs
from etils import epath
state = sharding_test.runs.run(
    sharding_test.make_config({str(text)!r}, (1, 4), num_steps=2), {str(tmp_path / "run")!r}
)
leaves = jax.tree.leaves((state.parameters, state.optimizer))
print(json.dumps([sum(x.nbytes for x in leaves),
                  sum(x.addressable_shards[0].data.nbytes for x in leaves)]))
"""
    done = runs.execute(["-c", code], **FOUR)
    assert done.returncode == 0, done.stderr
    whole, one = json.loads(done.stdout.splitlines()[-1])
    assert one < 0.35 * whole


def test_a_config_without_a_mesh_takes_all_devices(text, tmp_path):
    """As configs that were saved before there was one."""
    config = runs.make_config(text, num_steps=1)
    del config.mesh
    runs.run(config, tmp_path / "run")
    assert len(runs.curve(tmp_path / "run")) == 1


def test_devices_that_do_not_divide_the_batch_are_left_out(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: list(range(6)))
    sizes = {
        rows: sharding.make_mesh(sharding.MeshConfig(fsdp=fsdp), rows).shape
        for rows, fsdp in ((12, 1), (8, 1), (7, 1), (4, 2))
    }
    assert {rows: (shape["data"], shape["fsdp"]) for rows, shape in sizes.items()} == {
        12: (6, 1),
        8: (4, 1),
        7: (1, 1),
        4: (2, 2),
    }
    with pytest.raises(ConfigError, match=r"8 rows.* not a multiple of the 6 devices"):
        sharding.make_mesh(sharding.MeshConfig(data=6), 8)


def test_mistakes():
    with pytest.raises(ConfigError, match=r"config\.mesh\.fsdp is 0"):
        sharding.MeshConfig(fsdp=0)
    with pytest.raises(ConfigError, match="asks for 1 x 64 devices"):
        sharding.make_mesh(sharding.MeshConfig(fsdp=64), 64)
    with pytest.raises(ConfigError, match="asks for 1000 x 1 devices"):
        sharding.make_mesh(sharding.MeshConfig(data=1000), 1000)
