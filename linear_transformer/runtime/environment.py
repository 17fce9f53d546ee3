"""Environment of a run: machine, versions, command, date and commit."""

import datetime
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

import linear_transformer
from linear_transformer.runtime import files

FILE = "environment.json"  # in the folder of a run
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "torch",
    "pytorch-fast-transformers",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the results."""
    found = {
        "python": platform.python_version(),
        "linear_transformer": linear_transformer.__version__,
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sources() -> str:
    """SHA-256 of this package's Python files, committed or not."""
    root = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def describe() -> dict[str, Any]:
    """Facts that are needed to reproduce a number."""
    orig = [pathlib.Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    return {
        "command": shlex.join(orig),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": {
            "cpu": _cpu_model(),
            "cores": _cores(),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        },
        "huge_pages": "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
        "versions": versions(),
        "sources": sources(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def machine(environment: Mapping[str, Any]) -> str:
    """Hardware of `describe` in a few words."""
    hardware = environment.get("hardware", {})
    cores = hardware.get("cores")
    unit = "core" if cores == 1 else "cores"
    return f"{hardware.get('devices')}, {cores} {unit} {hardware.get('cpu')}"


def save(path: epath.Path, **facts: Any) -> None:
    """Writes `describe` and the facts as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, describe() | facts)


def _cores() -> int | None:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_model() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git(*args: str) -> str | None:
    """Output of git in the clone; None if the package is installed, also inside another clone."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
