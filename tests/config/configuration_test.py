"""Configs: dataclasses made of them, their errors, and the config of a run's folder."""

import dataclasses
import json
from typing import Any

import ml_collections
import pytest
from etils import epath

from configs import default
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.training import config_file, experiment


@dataclasses.dataclass(frozen=True)
class Part:
    size: int
    rate: float = 0.5
    names: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    limit: int | None = None


def build(**values):
    return configuration.build(Part, ml_collections.ConfigDict(values), "part")


def test_build():
    part = build(size=3, rate=1, names=["a", "b"], options={"x": {"y": [1]}}, limit=None)
    assert part == Part(3, 1, ("a", "b"), {"x": {"y": (1,)}}, None)
    extra = configuration.build(Part, ml_collections.ConfigDict({"rate": 0.1}), "part", size=4)
    assert extra == Part(4, 0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 3, "sise": 4}, r"config\.part\.sise: no such key; did you mean size\?"),
        ({}, r"config\.part\.size is missing"),
        ({"size": "3"}, r"config\.part\.size is '3', a str; it must be int"),
        ({"size": 3.0}, r"config\.part\.size is 3.0, a float; it must be int"),
        ({"size": True}, r"config\.part\.size is True, a bool; it must be int"),
        ({"size": 3, "rate": "x"}, r"config\.part\.rate is 'x', a str; it must be float"),
        ({"size": 3, "limit": "x"}, r"config\.part\.limit is 'x'.*int or None"),
    ],
)
def test_build_names_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        build(**values)


def make(variant="linear", **changes):
    config = default.get_config(variant)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return experiment.resolve(config)


def test_saved_config_reloads_equal(tmp_path):
    workdir = epath.Path(tmp_path) / "a" / "b"
    config_file.save(make(), workdir)
    assert configuration.plain(config_file.load(workdir)) == configuration.plain(make())
    config_file.save(make(), workdir)
    config_file.save(config_file.load(workdir), workdir)  # lists for tuples: the same config
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_resumable_keys_may_change(tmp_path):
    workdir = epath.Path(tmp_path)
    config_file.save(make(), workdir)
    config_file.save(make(num_steps=900, sample=False, mesh__data=1), workdir)
    saved = config_file.load(workdir)
    assert (saved.num_steps, saved.sample, saved.mesh.data) == (900, False, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.width": 64},
        {"model.pattern": ("gla",)},
        {"model.mixers.linear.convolution": 2},
        {"model.mixers.linear.normalize": False},
        {"optimizer.options.beta": 0.9},
        {"optimizer.warmup_steps": 51},
        {"data.sequence_length": 128},
        {"seed": 1},
    ],
)
def test_other_changes_are_refused(changes, tmp_path):
    workdir = epath.Path(tmp_path)
    config_file.save(make(), workdir)
    config = default.get_config()
    (key,) = changes
    *sections, name = key.split(".")
    part = config
    for section in sections:
        part = part[section]
    part[name] = changes[key]
    before = (workdir / "config.json").read_text()
    with pytest.raises(ConfigError, match=rf"\({key} is .* there and .* here\)"):
        config_file.save(config, workdir)
    assert (workdir / "config.json").read_text() == before


def without(values, *keys):
    for key in keys:
        *sections, name = key.split(".")
        part = values
        for section in sections:
            part = part[section]
        del part[name]


def test_keys_that_an_older_run_lacks_have_their_defaults(tmp_path):
    """A key that was added later blocks no run, nor does an option with its default."""
    config = make("gla", optimizer__options={"beta": 0.95})
    values = json.loads(json.dumps(configuration.plain(config)))
    without(values, "mesh", "mask_rate", "beam_width", "model.pattern_fill", "model.residual")
    without(values, "model.feed_forward_ratio", "optimizer.warmup_fraction", "optimizer.options")
    values["model"]["mixers"] = {"gla": {"temperature": 16.0}, "linear": {"convolution": 4}}
    values["model"]["max_positions"] = 1024  # of a table that this model has not
    (tmp_path / "config.json").write_text(json.dumps(values))
    workdir = epath.Path(tmp_path)
    loaded = config_file.load(workdir)
    assert loaded.mesh.data == 0 and loaded.mask_rate == 0.15
    config_file.save(config, workdir)
    with pytest.raises(ConfigError, match=r"model\.residual is 'sum' there and 'gru' here"):
        config_file.save(make("gla", model__residual="gru"), workdir)


def test_a_former_key_of_the_mesh_blocks_no_run(tmp_path):
    values = configuration.plain(make())
    values["mesh"]["exchange"] = "scan"
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert config_file.load(epath.Path(tmp_path)) == make()


def test_a_run_of_another_version_is_one_line(tmp_path):
    values = configuration.plain(make())
    values["model"]["heads"] = values["model"].pop("num_heads")
    (tmp_path / "config.json").write_text(json.dumps(values))
    message = r"config\.json: config\.model\.heads: no such key; .*another version"
    with pytest.raises(ConfigError, match=message) as error:
        config_file.load(epath.Path(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1", "nonsense", "3", "[]"])
def test_damaged_config(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json: not a config"):
        config_file.load(epath.Path(tmp_path))
