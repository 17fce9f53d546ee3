"""Processes that were started differently end before anything is compiled, and say in what."""

import re
import signal
import time

import jax
import pytest
from etils import epath

from linear_transformer.errors import ConfigError
from linear_transformer.runtime import distributed, environment
from linear_transformer.training import agreement
from tests.runtime.distributed_test import Processes, finish, make_config, wait_for_checkpoint
from tests.training import runs


@pytest.fixture
def config():
    return runs.make_config("text")


def process_settings(config):
    return agreement.process_settings(config, epath.Path("runs/x"))


def others(monkeypatch, *settings):
    """Process 0 is this one; the others have these."""
    texts = [distributed.texts_of(values) for values in settings]
    monkeypatch.setattr(distributed, "gather", lambda value: [value, *texts])


KEYS = {
    "seed": 1,
    "num_steps": 13,
    "log_every": 4,
    "final_evaluation": True,
    "mesh.fsdp": 2,
    "data.path": "other",
    "model.width": 32,
    "model.mixers.linear.form": "recurrent",
    "optimizer.learning_rate": 0.5,
    "optimizer.options": {"beta": 0.9},
}


@pytest.mark.parametrize("key", KEYS)
def test_any_key_of_the_config(key, config, monkeypatch):
    mine = process_settings(config)
    distributed.agree(mine)
    *parents, name = key.split(".")
    part = config
    for parent in parents:
        part = part[parent]
    with config.unlocked():
        part[name] = KEYS[key]
    others(monkeypatch, mine, process_settings(config))
    named = rf"config\.{re.escape(key)}\S* is .+ in process 0 and .+ in process 2; start all"
    with pytest.raises(ConfigError, match=named):
        distributed.agree(mine)


def test_code_versions_and_settings(config, monkeypatch):
    mine = process_settings(config)
    changes = [
        (environment, "sources", lambda: "0", "SHA-256 of linear_transformer's sources"),
        (environment, "versions", lambda: {"jax": "0.1"}, "the version of flax"),
    ]
    for module, name, value, named in changes:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            others(patch, process_settings(config))
            with pytest.raises(ConfigError, match=f"^{named} is "):
                distributed.agree(mine)
    with monkeypatch.context() as patch, jax.numpy_dtype_promotion("strict"):
        patch.setenv("XLA_FLAGS", "--xla_dump_to=x")
        others(patch, process_settings(config))
        with pytest.raises(ConfigError, match=r"^XLA_FLAGS is |^jax\.config\.jax_numpy"):
            distributed.agree(mine)


def test_a_mistake_of_one_is_one_of_all(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda value: [value, "no such file", None])
    with pytest.raises(ConfigError, match="process 1: no such file"):
        distributed.run_together(lambda: 3)

    def fail():
        raise ConfigError("mine")

    with pytest.raises(ConfigError, match=r"^mine$"):
        distributed.run_together(fail)


def test_two_processes_with_different_learning_rates(text, tmp_path):
    """Both end with status 2 and the same line; no folder is made."""
    commands = [
        runs.arguments(make_config(text, optimizer__learning_rate=rate), tmp_path / "run")
        for rate in (0.01, 0.02)
    ]
    with Processes(*commands) as processes:
        results = [finish(process) for process in processes]
    for status, _, err in results:
        assert status == 2
        assert err.splitlines()[0].startswith(
            "error: config.optimizer.learning_rate is 0.01 in process 0 and 0.02 in process 1"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["num_steps", "--workdir"])
def test_two_processes_that_differ(change, text, tmp_path):
    commands = [runs.arguments(make_config(text), tmp_path / "run")] * 2
    if change == "num_steps":
        commands[1] = [*commands[1], "--config.num_steps=41"]
        named = "config.num_steps is 40 in process 0 and 41 in process 1"
    else:
        commands[1] = [*commands[1], f"--workdir={tmp_path / 'other'}"]
        named = "--workdir is "
    with Processes(*commands) as processes:
        results = [finish(process) for process in processes]
    for status, _, err in results:
        assert status == 2
        assert err.splitlines()[0].startswith(f"error: {named}")


@pytest.mark.slow
def test_sigterm_while_the_other_process_does_not_answer(text, tmp_path):
    """Process 0 waits for a step that process 1 never does."""
    command = runs.arguments(make_config(text, num_steps=10**6), tmp_path / "run")
    with Processes(command, command) as processes:
        wait_for_checkpoint(tmp_path / "run", processes[0])
        processes[1].send_signal(signal.SIGSTOP)
        time.sleep(2)
        processes[0].send_signal(signal.SIGTERM)
        began = time.monotonic()
        status, _, _ = finish(processes[0], 120)
        assert status != 0
        assert time.monotonic() - began < 90
