"""The full training step of a byte language model, in tokens per second.

The default mixers are the published ones: `katharopoulos` has no short convolution.

python -m benchmarks.train_step
python -m benchmarks.train_step --peers=fast-transformers,torch
python -m benchmarks.train_step --huge_pages=false                 without host_memory.py
"""

import sys

from linear_transformer.runtime.host_memory import use_huge_pages

if __name__ == "__main__" and "--huge_pages=false" not in sys.argv:
    use_huge_pages()

import resource
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import flags

from benchmarks import flag_checks, peers, timing
from benchmarks.programs import Candidate, training_step
from configs import default, mechanisms
from linear_transformer.errors import ConfigError
from linear_transformer.runtime import environment
from linear_transformer.training import experiment

_SHAPES = flags.DEFINE_list("shapes", ["8x1024", "1x8192"], "Batch x tokens.")
_MIXERS = flags.DEFINE_list(
    "mixers", ["katharopoulos", "softmax"], "Variants of configs/default.py."
)
flag_checks.among(mechanisms.NAMES, _MIXERS)
_LAYERS = flags.DEFINE_integer("layers", 4, "Blocks.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the model.")
_HEADS = flags.DEFINE_integer("heads", 8, "Heads.")
_FEED_FORWARD = flags.DEFINE_integer("feed_forward", 1024, "Width of the feed-forward.")
_ = flags.DEFINE_bool("huge_pages", True, "--huge_pages=false measures without (see host_memory).")

COLUMNS = {
    "batch": "d",
    "length": ",",
    "candidate": "",
    "tokens/s": ",.0f",
    "ms": ",.0f",
    "min": ",.0f",
    "max": ",.0f",
    "GFLOP/s": ",.0f",
    "of matmul": ".0%",
    "peak MB": ",.0f",
    "temp MB": ",.0f",
    "faults": ",.0f",
    "system ms": ",.0f",
    "compile s": ".1f",
    "x FT": ".2f",
    "x SDPA": ".2f",
}
RATIOS = {peers.FAST_TRANSFORMERS: "x FT", peers.TORCH: "x SDPA"}


def make_config(mixer: str, batch: int, time: int) -> ml_collections.ConfigDict:
    config = default.get_config(mixer, width=_WIDTH.value, num_layers=_LAYERS.value)
    config.optimizer.update(name="adamw", learning_rate=1e-3)
    config.data.batch_size, config.data.sequence_length = batch, time
    config.model.num_heads = _HEADS.value
    if experiment.resolve(config).model.feed_forward_width:  # a gated unit has no feed-forward
        config.model.feed_forward_width = _FEED_FORWARD.value
    return config


def faults(run: Callable[[], Any], calls: int = 2) -> dict[str, float]:
    """Counts page faults and milliseconds spent in the kernel, per step."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(calls):
        run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "faults": (after.ru_minflt - before.ru_minflt) / calls,
        "system ms": 1e3 * (after.ru_stime - before.ru_stime) / calls,
    }


def compare(batch: int, time: int, matmul: float) -> list[dict[str, Any]]:
    found = {mixer: training_step(make_config(mixer, batch, time)) for mixer in _MIXERS.value}
    sizes = {
        "batch": batch,
        "time": time,
        "layers": _LAYERS.value,
        "width": _WIDTH.value,
        "heads": _HEADS.value,
        "feed_forward": _FEED_FORWARD.value,
        "vocab": 257,
    }
    asked = [peer for peer in (peers.FAST_TRANSFORMERS, peers.TORCH) if peers.wanted(peer)]
    found |= {peer: Candidate(peers.train_step(peer, **sizes)) for peer in asked}
    timings = timing.interleave({n: c.run for n, c in found.items()}, timing.ROUNDS.value)
    rows = []
    for name, candidate in found.items():
        seconds = timings[name].median
        row = {"batch": batch, "length": time, "candidate": name, **candidate.facts}
        row |= {
            "tokens/s": batch * time / seconds,
            "ms": 1e3 * seconds,
            "min": 1e3 * timings[name].low,
            "max": 1e3 * timings[name].high,
        }
        if candidate.flops_per_token is not None:
            rate = candidate.flops_per_token * batch * time / seconds
            row |= {"GFLOP/s": rate / 1e9, "of matmul": rate / matmul}
            row |= {RATIOS[peer]: timings[peer].median / seconds for peer in asked}
        peak = timing.peak_bytes(candidate.run)
        row |= faults(candidate.run) | {"peak MB": None if peak is None else peak / 1e6}
        rows.append(row)
    return rows


def main() -> None:
    matmul = timing.matmul_flops_per_second()
    rows = []
    for shape in _SHAPES.value:
        try:
            batch, time = map(int, shape.split("x"))
        except ValueError:
            raise ConfigError(f"--shapes={shape}: write batch x tokens, as 8x1024") from None
        rows += compare(batch, time, matmul)
    sizes = f"{_LAYERS.value} layers, width {_WIDTH.value}, {_HEADS.value} heads"
    pages = "huge pages" if environment.describe()["huge_pages"] else "pages of the system's size"
    title = f"Training step, {sizes}, AdamW, {pages}"
    timing.report(title, rows, COLUMNS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak MB: one step, above what was resident before it; whole process: {peak:,.0f} MB")
    print("x FT, x SDPA: time of the peer's step over that of ours")
    timing.save("train_step", {"train_step": rows}, matmul_gflops=matmul / 1e9, peak_rss_mb=peak)


if __name__ == "__main__":
    timing.main(main)
