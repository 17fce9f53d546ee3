"""Two processes with two devices each, over loopback, are one training run."""

import json
import re
import signal
import socket
import time

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from linear_transformer.data.pipeline import skip_batches
from linear_transformer.errors import ConfigError
from linear_transformer.runtime import distributed
from linear_transformer.training.build import make_task
from tests.training import runs

TWO = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
TOLERANCE = 2e-5  # only the order of sums differs


def make_config(text, mesh=(2, 2), **changes):
    settings = {
        "num_steps": 40,
        "log_every": 4,
        "eval_every": 20,
        "checkpoint_every": 4,
        "model__width": 64,
        "model__feed_forward_width": 128,
    }
    config = runs.make_config(text, **(settings | changes))
    config.mesh.data, config.mesh.fsdp = mesh
    return config


class Processes:
    """A command in two processes; killed at the end of the block whatever happens."""

    def __init__(self, *commands: list[str]):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        joined = [f"--coordinator_address=localhost:{port}", "--num_processes=2"]
        self.processes = []
        for number, command in enumerate(commands):
            self.processes.append(runs.fork([*command, *joined, f"--process_id={number}"], **TWO))

    def __enter__(self):
        return self.processes

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()


def finish(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def execute(command):
    """Runs a command in two processes to their end; what process 0 printed."""
    with Processes(command, command) as processes:
        results = [finish(process) for process in processes]
    for status, _, err in results:
        assert status == 0, err
    return results[0][1]


def losses(workdir, split="train"):
    return np.array([record["bits_per_byte"] for record in runs.curve(workdir, split)])


def wait_for_checkpoint(workdir, process, seconds=120):
    end = time.monotonic() + seconds
    while not ((workdir / "checkpoints").exists() and runs.steps(workdir)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_same_curves(workdir, expected):
    for split in ("train", "validation"):
        np.testing.assert_allclose(losses(workdir, split), losses(expected, split), TOLERANCE)
    counted, every = (
        [record["tokens"] for record in runs.curve(path, "validation")]
        for path in (workdir, expected)
    )
    assert counted == every  # each token once, whichever process reads it


@pytest.fixture(scope="module")
def single(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("single") / "run"
    runs.run(make_config(text, (1, 1)), workdir)
    return workdir


def kill(workdir, command, number):
    """Kills one of the two while they train; what the other one wrote, and its seconds to live."""
    with Processes(command, command) as processes:
        wait_for_checkpoint(workdir, processes[0])
        processes[number].kill()
        killed = time.monotonic()
        status, _, err = finish(processes[1 - number], distributed.HEARTBEAT_SECONDS + 60)
    assert status != 0
    assert "another task died" in err or distributed.FAREWELL in err
    return err, time.monotonic() - killed


def test_killed_and_resumed_they_are_one_process(text, single, tmp_path):
    """The other process notices that one is lost; then the same command in both, to the end."""
    command = runs.arguments(make_config(text), tmp_path / "run")
    _, seconds = kill(tmp_path / "run", command, 0)
    assert seconds < 30
    assert 0 < runs.steps(tmp_path / "run")[-1] < 40
    assert "4 x cpu (2 data x 2 fsdp)" in execute(command)
    assert_same_curves(tmp_path / "run", single)


def test_another_seed_is_another_curve(text, single, tmp_path):
    """Negative control of the comparison."""
    runs.run(make_config(text, (1, 1), seed=1, num_steps=8), tmp_path / "run")
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(losses(tmp_path / "run"), losses(single)[:2], TOLERANCE)


@pytest.mark.slow
def test_process_0_notices_too(text, tmp_path):
    """Silence is noticed, where the collectives wait for ever."""
    command = runs.arguments(make_config(text), tmp_path / "run")
    err, seconds = kill(tmp_path / "run", command, 1)
    print(f"process 0 ended {seconds:.0f} s after process 1")
    assert seconds < distributed.HEARTBEAT_SECONDS + 30
    assert "unhealthy" in err or distributed.FAREWELL in err


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1), (4, 1)])
def test_terminated_and_resumed_with_another_mesh(mesh, text, single, tmp_path):
    """SIGTERM to one of them saves the same step in both; one process goes on from there."""
    command = runs.arguments(make_config(text), tmp_path / "run")
    with Processes(command, command) as processes:
        wait_for_checkpoint(tmp_path / "run", processes[0])
        processes[1].send_signal(signal.SIGTERM)
        (status, out, err), (other, _, other_err) = (finish(p) for p in processes)
    assert (status, other) == (0, 0), err + other_err
    saved = runs.steps(tmp_path / "run")[-1]
    assert 0 < saved < 40
    assert f"SIGTERM: saved step {saved}" in out
    resumed = runs.execute(runs.arguments(make_config(text, mesh), tmp_path / "run"), **FOUR)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed:     step {saved} of 40" in resumed.stdout
    assert_same_curves(tmp_path / "run", single)


@pytest.mark.slow
def test_two_processes_that_share_rows(text, single, tmp_path):
    """A checkpoint of 2 x 2, where each reads its own rows, goes on where both read the same."""
    execute(runs.arguments(make_config(text, num_steps=8), tmp_path / "run"))
    shared = make_config(text, (1, 1), mesh__tensor=2, mesh__sequence=2)
    assert "2 sequence x 2 tensor" in execute(runs.arguments(shared, tmp_path / "run"))
    assert_same_curves(tmp_path / "run", single)


@pytest.mark.slow
def test_each_process_resumes_its_own_rows(text, tmp_path):
    """Packed rows are filled by each process, so that the two have positions of their own."""
    changes = {"data__packing": "packed", "checkpoint_every": 8}
    config = make_config(text, num_steps=20, **changes)
    execute(runs.arguments(config, tmp_path / "unbroken"))
    for steps in (8, 20):
        config.num_steps = steps
        execute(runs.arguments(config, tmp_path / "parts"))
    assert runs.curve(tmp_path / "parts") == runs.curve(tmp_path / "unbroken")


@pytest.mark.slow
def test_evaluation_and_samples_are_those_of_one_process(text, tmp_path):
    """The processes share the rows, on the parameters of all of them."""
    config = make_config(text, (1, 4), num_steps=4, sample=True, final_evaluation=True)
    workdir = tmp_path / "run"
    assert "--- sample" in execute(runs.arguments(config, workdir))
    evaluation = ["eval.py", f"--workdir={workdir}", "--split=test"]
    assert "stateful bits per byte" in execute(evaluation)
    several = json.loads((workdir / "eval-test.json").read_text())["metrics"]
    assert runs.execute(evaluation).returncode == 0
    one = json.loads((workdir / "eval-test.json").read_text())["metrics"]
    assert several == pytest.approx(one, rel=TOLERANCE)
    prompt = ["eval.py", f"--workdir={workdir}", "--prompt=when", "--num_tokens=8"]
    assert execute(prompt).count("when") == 1


@pytest.mark.slow
def test_a_mistake_ends_all_of_them(text, single):
    """One that process 0 alone can see; each says it in one line."""
    command = runs.arguments(make_config(text, seed=1), single)
    with Processes(command, command) as processes:
        results = [finish(process) for process in processes]
    for status, _, err in results:
        assert status == 2
        assert err.splitlines()[0].startswith(f"error: --workdir={single} holds a run with another")


# What can be checked in one process.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--num_processes=2"], "--coordinator_address"),
        (["--coordinator_address=localhost:1", "--num_processes=2"], "--process_id"),
        (["--coordinator_address=x", "--num_processes=2", "--process_id=0"], "host:port"),
        (["--coordinator_address=x:1", "--num_processes=2", "--process_id=2"], "--process_id=2"),
        (["--distributed=auto", "--num_processes=2"], "--num_processes"),
    ],
)
def test_mistakes(arguments, named):
    """One line that names the flag; nothing is tried."""
    known = flags.FLAGS.flags_by_module_dict()[distributed.__name__]
    with flagsaver.flagsaver(**{flag.name: flag.default for flag in known}):
        for argument in arguments:
            name, _, value = argument.removeprefix("--").partition("=")
            flags.FLAGS[name].parse(value)
            flags.FLAGS[name].using_default_value = False
        flags.FLAGS.mark_as_parsed()
        with pytest.raises(ConfigError, match=re.escape(named)):
            distributed.initialize()


def test_processes_that_were_not_joined(monkeypatch, text, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"one of 2 processes.*--distributed=auto"):
        runs.run(make_config(text), tmp_path / "run")


def test_a_folder_that_is_not_shared(monkeypatch, text, tmp_path):
    monkeypatch.setattr(distributed, "gather", lambda value: [value, value is not True and value])
    with pytest.raises(ConfigError, match="process 1 does not see"):
        runs.run(make_config(text, (1, 1)), tmp_path / "run")


def iterator(text, packing, count, index):
    data = {"data__packing": packing}
    task = make_task(runs.make_config(text, **data))
    return iter(task.training_data(index, count))


def test_rows_stay_the_same_with_another_number_of_processes(text):
    """The batch of step 5, in one process and in two, after a skip and without."""
    two = [iterator(text, "contiguous", 2, index) for index in range(2)]
    for _ in range(5):
        for data in two:
            next(data)
    one = iterator(text, "contiguous", 1, 0)
    skip_batches(one, 5)
    rows = np.concatenate([next(data)["inputs"] for data in two])
    expected = next(one)["inputs"]
    assert sorted(map(bytes, rows)) == sorted(map(bytes, expected))
    assert sorted(map(bytes, next(one)["inputs"])) != sorted(map(bytes, expected))


@pytest.mark.parametrize("packing", ["contiguous", "packed"])
def test_a_skip_is_as_good_as_reading(packing, text):
    for batches in (0, 1, 7):
        read, skipped = (iterator(text, packing, 2, 1) for _ in range(2))
        for _ in range(batches):
            next(read)
        skip_batches(skipped, batches)
        np.testing.assert_array_equal(next(skipped)["inputs"], next(read)["inputs"])


HOLD = """
import sys, time
from etils import epath
from linear_transformer.training.lock import FolderLock
lock = FolderLock(epath.Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_two_trainings_in_one_folder(text, tmp_path):
    """The second is refused and changes nothing; kill -9 of the first leaves the folder free."""
    config = runs.make_config(text, num_steps=1)
    holder = runs.fork(["-c", HOLD, str(tmp_path / "run")])
    try:
        end = time.monotonic() + 60
        while holder.written()[0] != "held\n":
            assert time.monotonic() < end and holder.poll() is None, holder.written()
            time.sleep(0.01)
        with pytest.raises(ConfigError, match=r"--workdir=.*run: another training is running"):
            runs.run(config, tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    finally:
        holder.kill()
        holder.communicate()
    runs.run(config, tmp_path / "run")
    assert runs.steps(tmp_path / "run") == [1]
