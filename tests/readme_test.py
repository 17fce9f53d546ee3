"""The README's program and commands do what they say."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import runs

README = pathlib.Path(__file__).parents[1] / "README.md"
QUICK = ["--config.num_steps=26", "--config.eval_every=13", "--config.eval_batches=1"]
QUICK += ["--config.final_evaluation=False"]


def test_the_program_runs():
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(program, str(README), "exec"), names)
    assert names["o"].shape == (2, 1000, 4, 64)
    assert jnp.abs(names["y"]).max() > 1
    np.testing.assert_allclose(names["y_last"], names["y"][:, 999:], atol=1e-5)


@pytest.mark.slow
def test_the_rows_work_in_order_in_one_folder(tmp_path):
    """Each trains some steps only; some fetch their data. Nothing is on stderr."""
    (tmp_path / "configs").symlink_to(README.parent / "configs")
    texts = runs.write_text(tmp_path / "texts")
    _, start = README.read_text().split("## Start here\n")
    rows = re.findall(r"^\|.*\|$", start.split("\n## ")[0], re.MULTILINE)
    commands = [c for row in rows for c in re.findall(r"`(python [^`]*)`", row)]
    assert len(commands) > 12
    environment = os.environ | {"PYTHONPATH": str(README.parent)}
    del environment["JAX_PLATFORMS"]  # a user has not set it
    for command in commands:
        script, *arguments = shlex.split(command.replace("FOLDER", str(texts)))[1:]
        if script == "train.py" and "--compile_only" not in arguments:
            arguments += QUICK
        if script.endswith(".py"):
            script = str(README.parent / script)
        done = subprocess.run(
            [sys.executable, script, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        print(command, done.stdout, sep="\n")
        assert (done.returncode, done.stderr) == (0, ""), command
    assert (tmp_path / "runs" / "default-width=512" / "metrics.jsonl").exists()
    assert (tmp_path / "runs" / "profiled" / "profile").is_dir()
    assert (tmp_path / "curves.png").exists()
    assert (tmp_path / "grid.png").exists()
