"""The scripts for Cloud TPU: what they print, and what they would do on a worker."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "scripts" / "tpu"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.sh") if path.stem != "common")
SLICE = ["--name=n", "--zone=z"]
TRAIN = ["--cache=gs://b/cache", "--", "script.py", "--workdir=gs://b/run", "--a=it's two words"]
ARGUMENTS = {"create": ["--type=v5litepod-64", "--spot"], "run": TRAIN}

# Writes down how it is called; over `ssh` it does the work, in a home folder of its own.
GCLOUD = """#!/usr/bin/env python3
import json, os, subprocess, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
command = sys.argv[-1].removeprefix("--command=")
if "ssh" in sys.argv and os.environ.get("WORKER"):
    environment = os.environ | {"HOME": os.environ["WORKER"]}
    done = subprocess.run(["bash", "-c", command], cwd=os.environ["WORKER"], env=environment)
    sys.exit(done.returncode)
"""
# In the place of Python on the worker: it goes on until SIGTERM, and then says so.
PYTHON = """#!/usr/bin/env bash
trap 'echo saved; exit 0' TERM
printf '%s\\n' "$JAX_COMPILATION_CACHE_DIR" "$@"
while true; do sleep 0.1; done
"""


class Machine:
    """The user's machine, with a gcloud and a git of our own, and a worker."""

    def __init__(self, folder):
        self.calls_file = folder / "calls"
        self.home = folder / "home"
        python = self.home / "linear_transformer" / ".venv" / "bin" / "python"
        programs = folder / "bin" / "gcloud", folder / "bin" / "git"
        for path, text in (*((program, GCLOUD) for program in programs), (python, PYTHON)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        self.environment = os.environ | {
            "CALLS": str(self.calls_file),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }

    def script(self, name, *arguments, connected=False):
        return self.bash(str(FOLDER / f"{name}.sh"), *arguments, connected=connected)

    def bash(self, *arguments, connected=False):
        return subprocess.run(
            ["bash", *arguments],
            env=self.environment | ({"WORKER": str(self.home)} if connected else {}),
            cwd=FOLDER.parents[1],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self):
        """Since the last time."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return [json.loads(line) for line in lines]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_there_are_scripts():
    assert SCRIPTS == ["create", "delete", "logs", "run", "setup", "stop"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_prints_what_would_be_run(name, machine):
    arguments = [*SLICE, "--project=p", *ARGUMENTS.get(name, [])]
    printed = machine.script(name, "--dry_run", *arguments)
    assert printed.returncode == 0, printed.stderr
    assert machine.calls() == []
    assert machine.bash("-ec", printed.stdout).returncode == 0
    said = machine.calls()
    assert machine.script(name, *arguments).returncode == 0
    assert said == machine.calls() != []
    for call in said:
        assert call[0] == "git" or {"--zone=z", "--project=p"} <= set(call)


def test_what_is_asked_for(machine):
    machine.script("create", *SLICE, "--type=v5litepod-64", "--spot")
    create, describe = machine.calls()
    assert " ".join(create) == (
        "gcloud compute tpus queued-resources create n --zone=z --node-id=n "
        "--accelerator-type=v5litepod-64 --runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    assert describe[4:6] == ["describe", "n"]
    machine.script("create", *SLICE, "--type=v6e-8")
    assert "--runtime-version=v2-alpha-tpuv6e" in machine.calls()[0]
    machine.script("delete", *SLICE)
    (delete,) = machine.calls()
    assert " ".join(delete) == (
        "gcloud compute tpus queued-resources delete n --zone=z --force --quiet"
    )
    machine.script("logs", *SLICE)
    assert "--worker=0" in machine.calls()[0]


def test_a_run_on_a_worker(machine):
    """It stays when the connection ends, is not started twice, and ends with SIGTERM."""
    log, pid_file = machine.home / "linear_transformer.log", machine.home / "linear_transformer.pid"
    assert machine.script("run", *SLICE, *TRAIN, connected=True).returncode == 0
    pid = int(pid_file.read_text())
    try:
        end = time.monotonic() + 30
        while not log.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        again = machine.script("run", *SLICE, *TRAIN, connected=True)
        assert (again.returncode, "a run goes on here" in again.stderr) == (1, True)
        assert int(pid_file.read_text()) == pid
        assert machine.script("stop", *SLICE, connected=True).returncode == 0
        cache, *arguments, last = log.read_text().splitlines()
        assert (cache, last) == ("gs://b/cache", "saved")
        assert arguments == [*TRAIN[2:], "--distributed=auto"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert machine.script("stop", *SLICE, connected=True).returncode != 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_usage(name, machine):
    shown = machine.script(name, "--help")
    assert shown.returncode == 0
    assert f"scripts/tpu/{name}.sh --name=NAME --zone=ZONE" in shown.stdout
    for flag in ("--name ", "--zone ", "--project ", "--dry_run "):
        assert flag in shown.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        *((name, ["--zone=z"], "--name") for name in SCRIPTS),
        ("stop", ["--name=n"], "--zone"),
        ("create", SLICE, "--type"),
        ("create", [*SLICE, "--type=a100"], "--type=a100"),
        ("create", [*SLICE, "--typ=v4-8"], "--typ"),
        ("run", SLICE, "train.py"),
        ("logs", [*SLICE, "--worker=all"], "--worker=all"),
        ("delete", ["n"], "n: flags"),
    ],
)
def test_mistakes(name, arguments, named, machine):
    failed = machine.script(name, *arguments)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert machine.calls() == []


def shellcheck(*paths):
    found = shutil.which(
        "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if found is None:
        pytest.skip("requirements-dev.txt is not installed: no shellcheck")
    return subprocess.run(
        [found, "--external-sources", *map(str, paths)], capture_output=True, text=True, check=False
    )


def test_shellcheck(tmp_path):
    done = shellcheck(*FOLDER.glob("*.sh"), *(FOLDER.parents[1] / ".ci").iterdir())
    assert done.returncode == 0, done.stdout
    # Negative control.
    for name in ("common", "create"):
        text = (FOLDER / f"{name}.sh").read_text()
        (tmp_path / f"{name}.sh").write_text(text.replace('"$flag_name"', "$flag_name"))
    assert "SC2086" in shellcheck(tmp_path / "create.sh").stdout
