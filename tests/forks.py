"""Scripts run in forks of a process that has made their imports, which take longer than most tests.

A fork is a process of its own: environment, flags, output, signals, exit status. The process that
is forked has started no JAX backend and checks no types.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref

ROOT = pathlib.Path(__file__).parents[1]

_SERVER = multiprocessing.get_context("forkserver")
# Neither what is run as a script, nor what defines flags of some scripts only.
_SERVER.set_forkserver_preload(
    [
        "tests.forks",
        "linear_transformer.inference.evaluation",
        "linear_transformer.training.loop",
        "matplotlib.pyplot",
    ]
)


class Fork:
    """`python ARGUMENTS` in the root of the repository; used like a `subprocess.Popen`."""

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        self._arguments = arguments
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)
        self._files = [pathlib.Path(folder, name) for name in ("out", "err")]
        for file in self._files:
            file.touch()
        self._process = _SERVER.Process(target=_run, args=(arguments, environment, self._files))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def written(self) -> tuple[str, str]:
        """What is in stdout and stderr by now."""
        out, err = (file.read_text("utf-8") for file in self._files)
        return out, err

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout, *self.written())
        return self.written()


def run(arguments: list[str], environment: dict[str, str], seconds: float):
    """Runs it to its end; a process that takes longer is killed, and fails."""
    fork = Fork(arguments, environment)
    try:
        out, err = fork.communicate(seconds)
    except subprocess.TimeoutExpired:
        fork.kill()
        raise
    return subprocess.CompletedProcess(arguments, fork.returncode, out, err)


def _run(arguments: list[str], environment: dict[str, str], files: list[pathlib.Path]) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.orig_argv = [sys.executable, *arguments]
    try:
        _execute(arguments)
    finally:  # as Python does at its end, and a fork does not
        threading._shutdown()
        atexit._run_exitfuncs()


def _execute(arguments: list[str]) -> None:
    match arguments:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case [script, *_]:
            sys.argv = arguments
            runpy.run_path(script, run_name="__main__")
