"""A checkpoint is trusted only where it was written to its end, whenever its writer is killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from absl import logging
from etils import epath

from linear_transformer.errors import ConfigError, RunError
from linear_transformer.training import checkpoints
from tests.training import runs, saving_child
from tests.training.checkpoints_test import make_state, progress_of


class Killed(BaseException):
    """What is done after it, a killed process would not have done."""


def save(workdir, *steps, keep=2):
    writer = checkpoints.Checkpoints(epath.Path(workdir), keep)
    restored = writer.restore(make_state(0))
    for step in steps:
        writer.save(step, make_state(step), progress_of(step))
    return restored and restored[1]["step"]


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("moment", ["_commit", "_checksum", "_sync"])
def test_killed_between_the_files_and_their_checksums(moment, keep, tmp_path, monkeypatch, warned):
    """The one before is there, and is used; the next save clears up."""

    def killed(*_):
        raise Killed

    writer = checkpoints.Checkpoints(epath.Path(tmp_path), keep)
    for step in (1, 2):
        writer.save(step, make_state(step), progress_of(step))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, moment, killed)
        with pytest.raises(Killed):
            writer.save(3, make_state(3), progress_of(3))
    assert (tmp_path / "checkpoints" / "3").exists()
    assert save(tmp_path, keep=keep) == 2
    assert save(tmp_path, 4, keep=keep) == 2
    assert checkpoints.saved_steps(epath.Path(tmp_path / "checkpoints")) == [2, 4][-keep:]
    assert len(warned) == 2
    assert all("step 3 cannot be read (no checksums.json" in line for line in warned)


def test_without_checksums_it_is_not_trusted(tmp_path, warned):
    save(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    assert save(tmp_path) == 1
    assert "step 2 cannot be read (no checksums.json" in warned[0]
    (tmp_path / "checkpoints" / "1" / "checksums.json").unlink()
    assert save(tmp_path) is None


def test_everything_is_on_the_disk_before_the_checksums(tmp_path, monkeypatch):
    """Files, then their folders, then the list, then the folder of the list and the one above."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "1"
    synced = [path for path in synced if path.startswith(str(folder.parent))]
    listed = synced.index(f"{folder}/checksums.json.part")
    files = [str(path) for path in folder.rglob("*") if path.is_file()]
    assert set(files) - {f"{folder}/checksums.json"} <= set(synced[:listed])
    assert {str(path.parent) for path in folder.rglob("*")} <= set(synced[:listed])
    assert synced[listed + 1 :] == [str(folder), str(folder.parent)]


TENSORSTORE = (  # its messages have paths of hundreds of characters
    'RESOURCE_EXHAUSTED: Failed writing: "a/state.orbax-checkpoint-tmp/d/2e28": Failed to write '
    "38600 bytes to file 3: No space left on device [os_error_code='28']"
)


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), ValueError(TENSORSTORE)])
def test_what_cannot_be_written_is_one_line(error, tmp_path, monkeypatch):
    """Also if Orbax's other threads fail after the save has failed."""

    def full(*_):
        raise error

    logger = logging.get_absl_logger()
    monkeypatch.setattr(logger, "filters", [*logger.filters])
    passed_on = []
    monkeypatch.setattr(sys, "unraisablehook", passed_on.append)
    monkeypatch.setattr(checkpoints, "_commit", full)
    said = r"checkpoints: the checkpoint of step 1 cannot .* \((\[Errno 28\] )?No space \D+\)$"
    writer = checkpoints.Checkpoints(epath.Path(tmp_path), keep=2)
    with pytest.raises(RunError, match=said):
        writer.save(1, make_state(1), progress_of(1))
    writer.close()
    late = logging.logging.makeLogRecord({"pathname": "orbax/checkpoint/_src/futures/future.py"})
    assert not logger.filter(late)
    ended, other = RuntimeError("Event loop is closed"), RuntimeError("of the program")
    for unraisable in (ended, other):
        sys.unraisablehook(types.SimpleNamespace(exc_value=unraisable))
    assert [unraisable.exc_value for unraisable in passed_on] == [other]


def test_a_folder_that_was_removed_is_named(tmp_path, monkeypatch):
    """Not the file that TensorStore did not find."""

    def removed(*_):
        shutil.rmtree(tmp_path / "checkpoints")
        raise ValueError("NOT_FOUND: Error reading 334 bytes")

    logger = logging.get_absl_logger()
    monkeypatch.setattr(logger, "filters", [*logger.filters])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(checkpoints, "_commit", removed)
    with pytest.raises(RunError, match=r"step 1 cannot be written \(the folder was removed\)$"):
        save(tmp_path, 1)


def test_none_that_can_be_read(tmp_path, warned):
    save(tmp_path, 1)
    next((tmp_path / "checkpoints" / "1" / "state").rglob("d/*")).write_bytes(b"x")
    with pytest.raises(ConfigError, match="no checkpoint can be read"):
        save(tmp_path)


class Saver:
    """The program `saving_child`; imports are done once for all kills."""

    def __init__(self, workdir):
        self.workdir = workdir
        argv, environment = runs.command(["-m", saving_child.__name__, str(workdir)])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(
            argv, cwd=runs.ROOT, env=environment, text=True, bufsize=1, **pipes
        )
        self.saved = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def start_and_kill(self, wait) -> int:
        """Kills a child after `wait`; the step that it restored."""
        print(file=self.process.stdin, flush=True)
        number = int(self._next("started"))
        restored = int(self._next("restored"))
        assert restored >= self.saved
        wait(restored)
        os.kill(number, signal.SIGKILL)
        while not (line := self.process.stdout.readline()).startswith("ended"):
            assert line.startswith("saved ")
            self.saved = int(line.split()[1])
        return restored

    def _next(self, word: str) -> str:
        line = self.process.stdout.readline()
        assert line.startswith(word), (line, self.process.stderr.read() if not line else "")
        return line.split()[1]


def kill(workdir, kills, seed):
    """At random moments, and between Orbax's last rename and the list of checksums."""
    rng = random.Random(seed)
    folder = workdir / "checkpoints"

    def unlisted(restored):
        ahead = folder / str(restored + rng.randint(1, 3))
        deadline = time.monotonic() + 20
        while not ahead.exists() and time.monotonic() < deadline:
            pass

    aimed = 0
    with Saver(workdir) as saver:
        for number in range(kills):
            if number % 2:
                saver.start_and_kill(lambda _: time.sleep(rng.uniform(0, 0.3)))
                continue
            saver.start_and_kill(unlisted)
            newest = max(int(f.name) for f in folder.iterdir() if f.name.isdecimal())
            aimed += newest not in checkpoints.saved_steps(epath.Path(folder))
    return aimed


def test_kills(tmp_path):
    kill(tmp_path, 4, seed=0)


@pytest.mark.slow
def test_sixty_kills(tmp_path):
    aimed = kill(tmp_path, 60, seed=1)
    print(f"{aimed} of 60 kills came between the last rename and the checksums")
    assert aimed > 5
