"""Configs are found and imported from any folder; a file of the current folder goes first."""

import importlib
import pathlib
import sys

import pytest

from linear_transformer.config import shipped_configs

DEFAULT = str(shipped_configs.FOLDER / "default.py")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with one config of its own, in a process that has imported none."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    clone = shipped_configs.FOLDER.parent
    others = [path for path in sys.path if path and pathlib.Path(path).resolve() != clone]
    monkeypatch.setattr(sys, "path", others)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        del sys.modules[name]


def write(folder, name, text="value = 'mine'\n"):
    path = folder / "configs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_find(elsewhere):
    write(elsewhere, "mine.py")
    assert shipped_configs.find("configs/default.py") == DEFAULT
    assert shipped_configs.find("configs/default.py:gla") == f"{DEFAULT}:gla"
    assert shipped_configs.find("configs/lm/shakespeare.py").endswith("/lm/shakespeare.py")
    for path in ("configs/mine.py:a", "configs/none.py", "default.py", "/configs/default.py"):
        assert shipped_configs.find(path) == path
    write(elsewhere, "default.py")
    assert shipped_configs.find("configs/default.py:gla") == "configs/default.py:gla"


def test_find_in_arguments(elsewhere):
    path = "configs/default.py:gla"
    assert shipped_configs.find_in_arguments(
        [f"--config={path}", f"-config={path}", "--config", path, path, f"--workdir={path}"]
    ) == [
        *(f"--config={DEFAULT}:gla", f"-config={DEFAULT}:gla", "--config", f"{DEFAULT}:gla"),
        *(path, f"--workdir={path}"),
    ]


def test_import(elsewhere):
    write(elsewhere, "mine.py", "from configs.lm import shakespeare\n")
    write(elsewhere, "lm/enwik8.py")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("configs.mine")
    shipped_configs.make_importable()
    mine = importlib.import_module("configs.mine")
    assert mine.shakespeare.get_config().data.dataset == "shakespeare"
    assert importlib.import_module("configs.lm.enwik8").value == "mine"
