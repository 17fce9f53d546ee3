"""Tiny training runs, and what it takes for two of them to be the same."""

import json
import os
import pathlib
import random
import subprocess
import sys

import jax
import ml_collections
import numpy as np
from etils import epath

from configs import default
from linear_transformer.training.loop import train
from linear_transformer.training.state import TrainState
from tests import forks
from tests.forks import ROOT

SPEEDS = ("time", "steps_per_second", "tokens_per_second", "mfu")

# Log windows and checkpoints fall out of step, so that a resume starts in the middle of a window.
SMALL = {
    "num_steps": 12,
    "log_every": 3,
    "eval_every": 4,
    "eval_batches": 2,
    "checkpoint_every": 2,
    "keep_checkpoints": 3,
    "final_evaluation": False,
    "sample": False,
    "data.dataset": "local_text",
    "data.batch_size": 4,
    "data.sequence_length": 32,
    "model.width": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.feed_forward_width": 32,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 2,
}


def write_text(folder: pathlib.Path) -> pathlib.Path:
    """Some thousand words in files of different lengths; returns the folder."""
    rng = random.Random(0)
    words = ["when", "shall", "we", "three", "meet", "again", "thunder", "lightning", "rain", "é"]
    folder.mkdir(parents=True)
    for number in range(6):
        text = " ".join(rng.choices(words, k=200 + 50 * number))
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def make_config(data: pathlib.Path | str, variant: str = "linear", **changes):
    """The default config made small; `data__packing="packed"` sets `data.packing`."""
    config = default.get_config(variant)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in (SMALL | {"data.path": str(data)} | changes).items():
        *parents, name = key.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        part[name] = value
    return config


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> TrainState:
    return train(config, epath.Path(workdir))


def arguments(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[str]:
    """The command line of train.py that makes the default config into this one."""

    def flat(config, prefix="config"):
        for name, value in config.items():
            if isinstance(value, ml_collections.ConfigDict):
                yield from flat(value, f"{prefix}.{name}")
            else:
                yield f"{prefix}.{name}", value

    before = dict(flat(default.get_config()))
    changed = [f"--{key}={value}" for key, value in flat(config) if before[key] != value]
    return ["train.py", f"--workdir={workdir}", *changed]


def command(arguments: list[str], **environment: str) -> tuple[list[str], dict[str, str]]:
    """The command of a script of the repository, and its environment.

    XLA_FLAGS are added to those of the tests.
    """
    if "XLA_FLAGS" in environment:
        environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {environment['XLA_FLAGS']}"
    settings = {"JAX_PLATFORMS": "cpu", "LINEAR_TRANSFORMER_HUGE_PAGES": "0", **environment}
    return [sys.executable, *arguments], os.environ | settings


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    """Starts a script of the repository, as a user does."""
    argv, environment = command(arguments, **environment)
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def execute(arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    """Runs a script of the repository to its end, in a fork that has its imports."""
    return forks.run(arguments, command(arguments, **environment)[1], seconds=120)


def fork(arguments: list[str], **environment: str) -> forks.Fork:
    """Starts a script of the repository in a fork that has its imports."""
    return forks.Fork(arguments, command(arguments, **environment)[1])


def records(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl, every one of them whole."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curve(workdir: pathlib.Path, split: str = "train") -> list[dict]:
    """The records of a split without what depends on the clock."""
    return [
        {name: value for name, value in record.items() if name not in SPEEDS}
        for record in records(workdir)
        if record["split"] == split
    ]


def assert_same_state(actual: TrainState, expected: TrainState) -> None:
    """Bit for bit, step and optimizer included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


def steps(workdir: pathlib.Path) -> list[int]:
    """The steps that have a checkpoint folder."""
    return sorted(int(f.name) for f in (workdir / "checkpoints").iterdir() if f.name.isdigit())
