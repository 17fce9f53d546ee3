"""Configs: dataclasses made of them, and their errors."""

import dataclasses
import json
from typing import Any

import ml_collections
import pytest
from etils import epath

from linear_transformer import configuration
from linear_transformer.errors import ConfigError


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
        ({"size": 3, "sise": 4}, r"config\.part\.sise: no such key; Part has no sise"),
        ({}, r"config\.part\.size is missing"),
        ({"size": "3"}, r"config\.part\.size is '3', a str; it must be int"),
        ({"size": 3.0}, r"config\.part\.size is 3.0, a float; it must be int"),
        ({"size": True}, r"config\.part\.size is True, a bool; it must be int"),
        ({"size": 3, "rate": "x"}, r"config\.part\.rate is 'x', a str; it must be float"),
        ({"size": 3, "limit": "x"}, r"config\.part\.limit is 'x'.*int or NoneType"),
    ],
)
def test_build_names_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        build(**values)


def make(**changes):
    return ml_collections.ConfigDict(
        {"num_steps": 10, "part": {"size": 3, "names": ("a", "b"), "options": {"x": 1}}} | changes
    )


def test_saved_config_reloads_equal(tmp_path):
    workdir = epath.Path(tmp_path) / "a" / "b"
    configuration.save(make(), workdir)
    assert configuration.plain(configuration.load(workdir)) == configuration.plain(make())
    configuration.save(make(), workdir)
    configuration.save(configuration.load(workdir), workdir)  # lists for tuples: the same config
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_resumable_keys_may_change(tmp_path):
    workdir = epath.Path(tmp_path)
    configuration.save(make(), workdir)
    for key in configuration.RESUMABLE_KEYS:
        configuration.save(make(**{key: 20}), workdir)
        assert configuration.load(workdir)[key] == 20


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ({"size": 4, "names": ("a", "b"), "options": {"x": 1}}, "part.size"),
        ({"size": 3, "names": ("a",), "options": {"x": 1}}, "part.names"),
        ({"size": 3, "names": ("a", "b"), "options": {"x": 1, "y": 2}}, "part.options.y"),
        ({"size": 3, "names": ("a", "b"), "options": {}}, "part.options.x"),
        # Only the run's length may change, not something of the same name inside.
        (
            {"size": 3, "names": ("a", "b"), "options": {"x": 1}, "num_steps": 3},
            "part.num_steps",
        ),
    ],
)
def test_other_changes_are_refused(part, key, tmp_path):
    workdir = epath.Path(tmp_path)
    configuration.save(make(), workdir)
    with pytest.raises(ConfigError, match=rf"\({key} is .* there and .* here\)"):
        configuration.save(make(part=part), workdir)
    assert json.loads((workdir / "config.json").read_text())["part"]["size"] == 3


@pytest.mark.parametrize("content", ["", "{", "[1", "nonsense", "3", "[]"])
def test_damaged_config(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json: not a config"):
        configuration.load(epath.Path(tmp_path))
