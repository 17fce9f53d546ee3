"""Shared code of the benchmarks: fair timing, memory figures, reports with the environment."""

import ctypes
import gc
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from rich.console import Console
from rich.table import Table

from linear_transformer.errors import ConfigError
from linear_transformer.runtime import environment, program

ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that each candidate is timed.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file to write; by default build/benchmarks/ and the script's name."
)

_BURST_SECONDS = 0.05  # a sample of a fast candidate is the mean of all calls in this time
_SLOW_SECONDS = 2.0


class Timing(NamedTuple):
    """Seconds per call over the rounds."""

    median: float
    low: float
    high: float


class Compiled(NamedTuple):
    """Jitted function compiled ahead of time, with the time of the compilation."""

    call: Callable[..., Any]
    compile_seconds: float
    temp_bytes: int  # buffers that XLA allocates beyond arguments and results


def interleave(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Times candidates in turns, A B C A B C ..., so that drifts of the machine affect all alike.

    A candidate returns when its work is done.  One call that is not timed precedes each sample
    (unless it takes seconds) and restores the candidate's caches and heap.
    """
    calls, slow = {}, set()
    for name, run in candidates.items():
        run()
        began = time.perf_counter()
        run()
        seconds = time.perf_counter() - began
        calls[name] = max(1, math.ceil(_BURST_SECONDS / seconds))
        if seconds > _SLOW_SECONDS:
            slow.add(name)
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            if name not in slow:
                run()
            began = time.perf_counter()
            for _ in range(calls[name]):
                run()
            samples[name].append((time.perf_counter() - began) / calls[name])
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in samples.items()}


def compile_ahead(function: Callable[..., Any], *args: Any, **jit_options: Any) -> Compiled:
    """Compiles a function for these arguments, without the persistent cache."""
    began = time.perf_counter()
    compiled = jax.jit(function, **jit_options).lower(*args).compile()
    seconds = time.perf_counter() - began
    return Compiled(compiled, seconds, compiled.memory_analysis().temp_size_in_bytes)


def matmul_flops_per_second(size: int = 2048) -> float:
    """Measures the rate of a large fp32 matrix product, the upper bound of this machine."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    timing = interleave({"matmul": lambda: product(a, a).block_until_ready()}, rounds=5)["matmul"]
    return 2 * size**3 / timing.low


def resident_bytes(key: str = "VmRSS") -> int:
    """Memory of this process, now (VmRSS) or at most since the last reset (VmHWM). Linux only."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {key}")


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """Measures the rise of resident memory during one call; None if not on Linux."""
    reset = pathlib.Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # returns memory that earlier candidates freed
    reset.write_text("5")
    before = resident_bytes()
    run()
    return resident_bytes("VmHWM") - before


def main(run: Callable[[], None]) -> None:
    """Runs a script with the errors of `program.run`; files that it cannot write come first."""

    def checked() -> None:
        for flag in ("output", "plot"):
            path = flags.FLAGS[flag].value if flag in flags.FLAGS else None
            if path and epath.Path(path).is_dir():
                raise ConfigError(f"--{flag}={path}: a folder; it must be a file")
            if path and flag == "plot":
                program.output_path(path)
        run()

    program.run(checked)


def report(title: str, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> None:
    """Prints the columns, each with its format; a missing value is left blank."""
    table = Table(title=title, title_justify="left")
    numeric = {c for c in columns if any(isinstance(row.get(c), int | float) for row in rows)}
    for name in columns:
        table.add_column(name, justify="right" if name in numeric else "left")
    for row in rows:
        values = (row.get(name) for name in columns)
        formats = zip(values, columns.values(), strict=True)
        table.add_row(*("" if v is None else format(v, f) for v, f in formats))
    width = None if sys.stdout.isatty() else 190
    Console(width=width).print(table)


def title(what: str) -> str:
    """Returns the title of a picture: what was measured, and on which machine."""
    return f"{what}; {environment.machine(environment.describe())}"


def save(name: str, results: Mapping[str, list[dict[str, Any]]], **facts: Any) -> None:
    """Writes the results together with the environment."""
    path = epath.Path(_OUTPUT.value or f"build/benchmarks/{name}.json")
    environment.save(path, **facts, results=results)
    print(f"wrote {path}")
