"""Time of training steps and operators on the CPU: this checkout against another of the project.

Two versions of one package cannot be loaded into one process.  So each version compiles a program
in a process of its own; then the processes take turns, one step each.  A second process of the
other version shows the noise: its ratio would be 1 without noise.

python -m benchmarks.versions --other=../before --rounds=20
python -m benchmarks.versions --other=../before --variants=gla --rounds=40 --large
python -m benchmarks.versions --other=../before --variants= --operators=chunk,delta
"""

import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from benchmarks import attention, timing
from linear_transformer.errors import ConfigError

_OTHER = flags.DEFINE_string("other", None, "Folder of the other checkout.")
_VARIANTS = flags.DEFINE_list("variants", ["linear", "softmax"], "Variants of configs/default.py.")
_OPERATORS = flags.DEFINE_list("operators", [], "Operators of benchmarks.attention.")
_LENGTH = flags.DEFINE_integer("length", 1024, "Tokens of an operator's input.", lower_bound=1)
_LARGE = flags.DEFINE_bool(
    "large", False, "Width 256, 4 layers, 8 x 256 tokens, AdamW, in place of the quick start's."
)
_SERVE = flags.DEFINE_string("serve", None, "Internal: the program that this process runs.")

_BURST_SECONDS = 0.05  # a sample is the mean of all calls in this time
_OPERATOR = "operator "


def training_step(variant: str) -> Callable[[], Any]:
    from benchmarks import programs
    from configs import default

    config = default.get_config(
        variant, **({"width": 256, "num_layers": 4} if _LARGE.value else {})
    )
    if _LARGE.value:
        config.optimizer.update(name="adamw", learning_rate=1e-3)
        config.data.batch_size, config.data.sequence_length = 8, 256
        config.model.num_heads, config.model.feed_forward_width = 8, 1024
    return programs.training_step(config).run


def operator(name: str) -> Callable[[], Any]:
    """Compiles an operator of benchmarks.attention, forward and backward, in fp32."""
    inputs = attention.make_inputs(_LENGTH.value, "float32", name)
    return attention.compiled(attention.OPERATORS[name], inputs).call


def serve(name: str) -> None:
    """Runs a program for each line of the input, and prints the seconds of one call.

    The function runs with the modules of either version, so it may use only what both have.
    """
    is_operator = name.startswith(_OPERATOR)
    run = operator(name.removeprefix(_OPERATOR)) if is_operator else training_step(name)
    run()
    began = time.perf_counter()
    run()
    calls = max(1, math.ceil(_BURST_SECONDS / (time.perf_counter() - began)))
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(calls):
            run()
        print((time.perf_counter() - began) / calls, flush=True)


class Version:
    """Process that holds the compiled program of a checkout."""

    def __init__(self, checkout: pathlib.Path, name: str):
        path = pathlib.Path(__file__).resolve()
        options = (f"--large={_LARGE.value}", f"--length={_LENGTH.value}")
        self.process = subprocess.Popen(
            [sys.executable, path, f"--serve={name}", *options],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout.resolve()), "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds: list[float] = []

    def wait(self) -> None:
        """Waits for the end of the compilation."""
        if self._line() != "ready":
            raise ConfigError("--other: a checkout did not compile a program, see above")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def step(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        self.seconds.append(float(self._line()))

    def close(self) -> None:
        self.process.communicate()


def compare(program: str, other: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a row per process; "ratio" divides by the seconds of the other version's first."""
    here = pathlib.Path(__file__).resolve().parents[1]
    checkouts = {"other": other, "this": here, "other again": other}
    versions = {name: Version(checkout, program) for name, checkout in checkouts.items()}
    for version in versions.values():
        version.wait()
    for turn in range(timing.ROUNDS.value):
        # Each process follows each neighbour equally often.
        for version in list(versions.values())[:: 1 if turn % 2 else -1]:
            version.step()
    first = versions["other"].seconds
    for version in versions.values():
        version.close()
    return [
        {
            "program": program,
            "checkout": name,
            "ms": 1e3 * statistics.median(version.seconds),
            "min": 1e3 * min(version.seconds),
            "max": 1e3 * max(version.seconds),
            "ratio": statistics.median(version.seconds) / statistics.median(first),
            "of minima": min(version.seconds) / min(first),
            "of pairs": statistics.median(
                b / a for a, b in zip(first, version.seconds, strict=True)
            ),
        }
        for name, version in versions.items()
    ]


def main() -> None:
    if _SERVE.value:
        return serve(_SERVE.value)
    for name in _OPERATORS.value:
        if name not in attention.OPERATORS:
            raise ConfigError(f"--operators={name}: must be among {', '.join(attention.OPERATORS)}")
    if _OTHER.value is None:
        raise ConfigError("--other is missing: the folder of another checkout")
    other = pathlib.Path(_OTHER.value)
    if not (other / "benchmarks" / "programs.py").is_file():
        raise ConfigError(f"--other={other}: there is no benchmarks/programs.py in this folder")
    from linear_transformer.runtime.host_memory import use_huge_pages  # not in every version

    use_huge_pages()  # of the processes to come
    rows = []
    for program in [*_VARIANTS.value, *(_OPERATOR + name for name in _OPERATORS.value)]:
        rows += compare(program, other)
        timing.save("versions", {"versions": rows})  # a stopped run keeps its rows
    columns = {"program": "", "checkout": "", "ms": ",.1f", "min": ",.1f", "max": ",.1f"}
    ratios = {"ratio": ".3f", "of minima": ".3f", "of pairs": ".3f"}
    timing.report("Training steps and operators", rows, columns | ratios)
    print("ratio: of the medians, to the other checkout; of pairs: median of the ratios of turns")


if __name__ == "__main__":
    timing.main(main)
