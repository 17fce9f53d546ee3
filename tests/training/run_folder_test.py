"""Where a run goes by default."""

import pytest
from etils import epath

from linear_transformer.errors import ConfigError
from linear_transformer.training import run_folder


@pytest.mark.parametrize(
    ("config_path", "changes", "folder"),
    [
        ("configs/default.py", {}, "runs/default"),
        ("configs/default.py:softmax", {}, "runs/default-softmax"),
        ("configs/lm/shakespeare.py:a,b", {}, "runs/lm/shakespeare-a,b"),
        ("/elsewhere/configs/lm/x.py", {}, "runs/lm/x"),
        ("/configs/elsewhere/configs/lm/x.py", {}, "runs/lm/x"),
        ("mine.py", {}, "runs/mine"),
        ("experiments/mine.py", {}, "runs/experiments/mine"),
        # Nothing is written beside a config that lies elsewhere.
        ("/elsewhere/experiments/mine.py:a", {}, "runs/mine-a"),
        ("../../experiments/mine.py", {}, "runs/mine"),
        # Each set of changes has a folder, in whatever order they are given.
        ("configs/default.py", {"model.width": 512}, "runs/default-width=512"),
        ("mine.py:a", {"seed": 1, "data.batch_size": 2}, "runs/mine-a-batch_size=2-seed=1"),
        ("mine.py", {"data.path": "/my texts/a.b"}, "runs/mine-path=_my_texts_a.b"),
        ("mine.py", {"model.pattern": ("gla", "softmax")}, "runs/mine-pattern=gla,softmax"),
    ],
)
def test_default(config_path, changes, folder, tmp_path, monkeypatch):
    (tmp_path / "configs" / "project").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "configs" / "project")
    assert run_folder.default(config_path, changes) == folder
    assert run_folder.default(config_path, dict(reversed(changes.items()))) == folder


def test_a_long_name_is_cut_and_still_its_own():
    names = [run_folder.default("x.py", {"data.path": "a" * 500 + end}) for end in "bc"]
    assert names[0] != names[1]
    assert all(len(name) < 200 for name in names)


def test_path_of(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert run_folder.path_of("~/runs/a") == epath.Path("/home/someone/runs/a")
    assert run_folder.path_of("runs/~a") == epath.Path("runs/~a")
    with pytest.raises(ConfigError, match="--workdir=https://a/b: there is no file system"):
        run_folder.path_of("https://a/b")
    with pytest.raises(ConfigError, match="not UTF-8"):
        run_folder.path_of("runs/\udcff")


def test_free(tmp_path):
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
    assert run_folder.free(epath.Path(tmp_path / "run")) == epath.Path(tmp_path / "run-3")
