"""Time of the training step on the CPU, of this checkout against another one of the project.

Two versions of one package cannot be loaded into one process.  So each version compiles its step in
a process of its own; then the processes take turns, one step each.  A second process of the other
version shows the noise: its ratio would be 1 without noise.

python -m benchmarks.versions --other=../before --rounds=20
python -m benchmarks.versions --other=../before --variants=gla --rounds=40 --large
"""

import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import flags

from benchmarks import timing
from linear_transformer.errors import ConfigError

_OTHER = flags.DEFINE_string("other", None, "Folder of the other checkout.")
_VARIANTS = flags.DEFINE_list("variants", ["linear", "softmax"], "Variants of configs/default.py.")
_LARGE = flags.DEFINE_bool(
    "large", False, "Width 256, 4 layers, 8 x 256 tokens, AdamW, in place of the quick start's."
)
_SERVE = flags.DEFINE_string("serve", None, "Internal: the variant that this process runs.")


def serve(variant: str) -> None:
    """Runs a training step for each line of the input, and prints its seconds.

    The function runs with the modules of either version, so it may use only what both have.
    """
    from benchmarks import programs
    from configs import default

    config = default.get_config(
        variant, **({"width": 256, "num_layers": 4} if _LARGE.value else {})
    )
    if _LARGE.value:
        config.optimizer.update(name="adamw", learning_rate=1e-3)
        config.data.batch_size, config.data.sequence_length = 8, 256
        config.model.num_heads, config.model.feed_forward_width = 8, 1024
    step = programs.training_step(config)
    for _ in range(3):
        step.run()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step.run()
        print(time.perf_counter() - began, flush=True)


class Version:
    """Process that holds the compiled step of a checkout."""

    def __init__(self, checkout: pathlib.Path, variant: str):
        path = pathlib.Path(__file__).resolve()
        self.process = subprocess.Popen(
            [sys.executable, path, f"--serve={variant}", f"--large={_LARGE.value}"],
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
            raise ConfigError("--other: a checkout did not compile a step, see above")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def step(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        self.seconds.append(float(self._line()))

    def close(self) -> None:
        self.process.communicate()


def compare(variant: str, other: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a row per process; "ratio" divides by the seconds of the other version's first."""
    here = pathlib.Path(__file__).resolve().parents[1]
    checkouts = {"other": other, "this": here, "other again": other}
    versions = {name: Version(checkout, variant) for name, checkout in checkouts.items()}
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
            "variant": variant,
            "checkout": name,
            "ms": 1e3 * statistics.median(version.seconds),
            "min": 1e3 * min(version.seconds),
            "max": 1e3 * max(version.seconds),
            "ratio": statistics.median(version.seconds) / statistics.median(first),
            "of pairs": statistics.median(
                b / a for a, b in zip(first, version.seconds, strict=True)
            ),
        }
        for name, version in versions.items()
    ]


def main() -> None:
    if _SERVE.value:
        return serve(_SERVE.value)
    if _OTHER.value is None:
        raise ConfigError("--other is missing: the folder of another checkout")
    other = pathlib.Path(_OTHER.value)
    if not (other / "benchmarks" / "programs.py").is_file():
        raise ConfigError(f"--other={other}: there is no benchmarks/programs.py in this folder")
    rows = [row for variant in _VARIANTS.value for row in compare(variant, other)]
    columns = {"variant": "", "checkout": "", "ms": ",.1f", "min": ",.1f", "max": ",.1f"}
    timing.report("Training step", rows, columns | {"ratio": ".3f", "of pairs": ".3f"})
    print("ratio: of the medians, to the other checkout; of pairs: median of the ratios of turns")
    timing.save("versions", {"versions": rows})


if __name__ == "__main__":
    timing.main(main)
