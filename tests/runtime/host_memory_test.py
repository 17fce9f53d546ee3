"""The restart that gives the heap huge pages."""

import os
import pathlib
import subprocess
import sys

import pytest

from linear_transformer.runtime import host_memory

SCRIPT = """
import os, sys
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.optimize)
from linear_transformer.runtime.host_memory import use_huge_pages
use_huge_pages()
print("done")
"""
ARGUMENTS = ["--a=b c", "", "--config.x='y'", "é"]

needs_switch = pytest.mark.skipif(
    not (host_memory._SWITCH.exists() and "[madvise]" in host_memory._SWITCH.read_text()),
    reason="the kernel doesn't offer huge pages on request (transparent_hugepage is not madvise)",
)


def run(tmp_path, **environment):
    (tmp_path / "script.py").write_text(SCRIPT)
    unset = ("GLIBC_TUNABLES", "LINEAR_TRANSFORMER_HUGE_PAGES")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    root = str(pathlib.Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-O", "-W", "error", str(tmp_path / "script.py"), *ARGUMENTS],
        env=inherited | {"PYTHONPATH": root, "PYTHONUTF8": "1"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


@needs_switch
def test_restarts_once_with_the_same_arguments(tmp_path):
    first, second, done = run(tmp_path)
    pid, tunables, *_ = first.split(" ", 2)
    assert tunables == "None"
    assert second == first.replace(
        "None",
        "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184",
        1,
    )
    assert second.startswith(pid)
    assert second.endswith(f"{ARGUMENTS} 1")
    assert done == "done"


@needs_switch
def test_keeps_other_tunables(tmp_path):
    _, second, _ = run(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0")
    assert (
        second.split(" ")[1]
        == "glibc.malloc.check=0:glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184"  # noqa: E501
    )


@pytest.mark.parametrize(
    "environment",
    [{"LINEAR_TRANSFORMER_HUGE_PAGES": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}],
)
def test_leaves_the_process_alone(environment, tmp_path):
    assert len(run(tmp_path, **environment)) == 2


@pytest.mark.parametrize("switch", ["[always] madvise never", "always madvise [never]", None])
def test_only_where_the_kernel_asks(switch, tmp_path, monkeypatch):
    path = tmp_path / "enabled"
    if switch is not None:
        path.write_text(switch)
    monkeypatch.setattr(host_memory, "_SWITCH", path)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("LINEAR_TRANSFORMER_HUGE_PAGES", raising=False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("restarted"))
    host_memory.use_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ
