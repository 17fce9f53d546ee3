"""The README's program, the commands of docs/usage.md and the links of both do what they say."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from configs import mechanisms
from tests.training import runs

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
USAGE = ROOT / "docs" / "usage.md"
PAGES = [README, ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:, ]+)(?:#[^)]*)?\)")  # not those with a scheme, as https:
# A path in the text: two names or more with a slash between them, and a suffix of a file we write.
PATH = re.compile(r"(?<![\w/.:-])(?:[\w-]+/)+[\w-]+\.(?:py|md|sh|png|toml)\b")
# Files that a command of the page, or its reader, writes.
WRITTEN = {
    "build/benchmarks/long.png",
    "docs/figure1.png",
}
QUICK = ["--config.num_steps=26", "--config.eval_every=13", "--config.eval_batches=1"]
QUICK += ["--config.final_evaluation=False"]


def test_the_program_runs():
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(program, str(README), "exec"), names)
    assert names["o"].shape == (2, 1000, 4, 64)
    assert jnp.abs(names["y"]).max() > 1
    np.testing.assert_allclose(names["y_last"], names["y"][:, 999:], atol=1e-5)


def test_the_mechanisms_are_counted():
    text = README.read_text()
    (count,) = re.findall(r"The library has (\d+)\s+mechanisms", text)
    (section,) = re.findall(r"^## Mechanisms$(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    names = re.findall(r"`(\w+)`", section)
    assert set(names) <= set(mechanisms.NAMES)
    assert len(names) == len(set(names)) == int(count)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    roots = (page.parent, ROOT, ROOT / "linear_transformer", ROOT / "configs")
    for path in set(PATH.findall(text)) - WRITTEN:
        if not any((root / path).exists() for root in roots):
            missing.append(path)
    assert missing == []


@pytest.mark.slow
def test_the_rows_work_in_order_in_one_folder(tmp_path):
    """Each trains some steps only; some fetch their data. Nothing is on stderr."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    texts = runs.write_text(tmp_path / "texts")
    _, start = USAGE.read_text().split("## Commands\n")
    rows = re.findall(r"^\|.*\|$", start.split("\n## ")[0], re.MULTILINE)
    commands = [c for row in rows for c in re.findall(r"`(python [^`]*)`", row)]
    assert len(commands) > 12
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    del environment["JAX_PLATFORMS"]  # a user has not set it
    for command in commands:
        script, *arguments = shlex.split(command.replace("FOLDER", str(texts)))[1:]
        if script == "train.py" and "--compile_only" not in arguments:
            arguments += QUICK
        if script.endswith(".py"):
            script = str(ROOT / script)
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
