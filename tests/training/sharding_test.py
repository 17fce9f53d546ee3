"""Several devices train to the same numbers as one; the devices are virtual, of one CPU."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from linear_transformer.data.stream import Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.sharding import placement
from linear_transformer.sharding.mesh import AXES, MeshConfig, make_mesh
from linear_transformer.training import build
from tests import eight_devices
from tests.tasks import image_classification_test
from tests.training import runs, shipped_configs_test

FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
MESHES = {
    "data": {"data": 4},
    "both": {"data": 2, "fsdp": 2},
    "fsdp": {"data": 1, "fsdp": 4},
    "rows": {"data": 1, "sequence": 2, "tensor": 2},
}
CASES = "tests/training/mesh_cases.py"


def make_config(text, mesh=None, **changes):
    wide = {"model__width": 64, "model__feed_forward_width": 128}
    config = runs.make_config(text, log_every=1, **wide, **changes)
    config.mesh.update({"data": 1} if mesh is None else mesh)
    return config


def test_meshes_of_eight_devices():
    eight_devices.run_tests(CASES)


@pytest.mark.slow
def test_meshes_of_eight_devices_slow():
    eight_devices.run_tests(CASES, slow=True)


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


def assert_same_losses(workdir, expected):
    """Only the order of sums differs."""
    for split in ("train", "validation"):
        np.testing.assert_allclose(losses(workdir, split), losses(expected, split), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_several_devices_are_one(mesh, text, single, tmp_path):
    output = execute(make_config(text, MESHES[mesh]), tmp_path / "run")
    assert "4 x cpu" in output
    assert_same_losses(tmp_path / "run", single)


def test_one_run_on_one_mesh_after_the_other(text, single, tmp_path):
    """Every loss is that of one device; a checkpoint goes on with other devices."""
    parts = (("both", 4), ("rows", 9))
    for mesh, steps in parts:
        output = execute(make_config(text, MESHES[mesh], num_steps=steps), tmp_path / "run")
        assert "4 x cpu" in output
    runs.run(make_config(text, num_steps=12), tmp_path / "run")
    assert_same_losses(tmp_path / "run", single)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["softmax", "gla", "gated_delta_net", "transnormer_t2"])
def test_mechanisms(variant, text, tmp_path):
    runs.run(make_config(text, variant=variant), tmp_path / "one")
    execute(make_config(text, MESHES["both"], variant=variant), tmp_path / "four")
    np.testing.assert_allclose(losses(tmp_path / "four"), losses(tmp_path / "one"), 5e-5)


def test_a_config_without_a_mesh_takes_all_devices(text, tmp_path):
    """As configs that were saved before there was one."""
    config = runs.make_config(text, num_steps=1)
    del config.mesh
    runs.run(config, tmp_path / "run")
    assert len(runs.curve(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("sizes", "rows", "message"),
    [
        ({}, 8, r"8 rows.* multiple of the 6 devices.*config\.mesh\.data=4 to use 4 of 6 devices"),
        ({}, 7, r"7 rows.* multiple of the 6 devices.*config\.mesh\.data=1 to use 1 of 6 devices"),
        ({"data": 6}, 8, r"8 rows.* not a multiple of the 6 devices"),
        ({"fsdp": 2}, 4, r"4 rows.* the 6 devices.*config\.mesh\.data=2 to use 4 of 6 devices"),
        (
            {"fsdp": 2},
            3,
            r"3 rows.* the 6 devices along data and fsdp of config\.mesh; make it one$",
        ),
        ({"tensor": 4}, 8, r"has 4 of 6 devices \(fsdp x sequence x tensor is 4\)"),
    ],
)
def test_no_device_is_left_out_silently(monkeypatch, sizes, rows, message):
    monkeypatch.setattr(jax, "devices", lambda: list(range(6)))
    with pytest.raises(ConfigError, match=message):
        make_mesh(MeshConfig(**sizes), rows)


def test_devices_are_left_out_on_request(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: list(range(6)))
    for sizes, rows, shape in (
        ({}, 12, (6, 1)),
        ({"data": 4}, 8, (4, 1)),
        ({"data": 2, "fsdp": 2}, 4, (2, 2)),
        ({"data": 1, "tensor": 4}, 8, (1, 1)),
    ):
        mesh = make_mesh(MeshConfig(**sizes), rows)
        assert (mesh.shape["data"], mesh.shape["fsdp"]) == shape


def test_mistakes():
    with pytest.raises(ConfigError, match=r"config\.mesh\.fsdp is 0"):
        MeshConfig(fsdp=0)
    with pytest.raises(ConfigError, match=r"asks for 64 devices \(16 fsdp x 4 sequence\)"):
        make_mesh(MeshConfig(fsdp=16, sequence=4), 64)
    with pytest.raises(ConfigError, match="asks for 1000 devices"):
        make_mesh(MeshConfig(data=1000), 1000)


def mistake(config, folder):
    with pytest.raises(ConfigError) as error:
        runs.run(config, folder)
    return str(error.value)


def test_what_cannot_be_shared_says_so(text, tmp_path, monkeypatch):
    """Before anything is compiled."""
    monkeypatch.setattr(build, "init_state", None)
    monkeypatch.setattr(build.capacity, "check", lambda config, devices: None)
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))
    shipped_configs_test.write_idx(tmp_path)
    config = image_classification_test.make_config(tmp_path, data__batch_size=8)
    config.mesh.sequence = 2
    message = mistake(config, tmp_path / "run")
    assert message == "config.mesh.sequence is 2; an example of image_classification is no sequence"
    message = mistake(make_config(text, {"data": 1, "tensor": 4}), tmp_path)
    assert message == "config.model.num_heads (2) is not a multiple of config.mesh.tensor (4)"


def test_padding_is_a_segment_of_its_own():
    batch = {
        "inputs": np.arange(1, 11).reshape(2, 5),
        "segment_ids": np.array([[1, 1, 2, 2, 0], [1, 2, 3, 4, 5]]),
        "labels": np.zeros(2),
    }
    names = Sequences(("inputs", "segment_ids"))
    padded = placement._padded(batch, 4, names)
    np.testing.assert_array_equal(padded["segment_ids"][:, 5:], [[3] * 3, [6] * 3])
    np.testing.assert_array_equal(padded["inputs"][:, :5], batch["inputs"])
    assert not padded["inputs"][:, 5:].any()
    assert padded["labels"] is batch["labels"]
    assert placement._padded(batch, 5, names) is batch
    prefixed = names._replace(num_prefix_tokens=1)
    assert placement._padded(batch, 5, prefixed)["inputs"].shape == (2, 10)
    pairs = Sequences(("inputs",), axis=2)
    assert placement._padded({"inputs": np.ones((3, 2, 5))}, 4, pairs)["inputs"].shape == (3, 2, 8)


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int


def test_processes_that_share_rows_read_the_same(monkeypatch):
    """4 processes with 2 devices each: 4 parts of the rows, 2 of them, or all of them."""
    devices = np.array([Device(i // 2) for i in range(8)])
    for shape, expected in (
        ((2, 2, 2, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((1, 2, 4, 1), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((8, 1, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((1, 1, 2, 4), [(0, 1)] * 4),
    ):
        mesh = Mesh(devices.reshape(shape), AXES)
        for process, part in enumerate(expected):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            assert placement.readers(mesh) == part
