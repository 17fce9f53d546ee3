"""Longest possible sequence: figure 1 of Katharopoulos et al. 2020 (arXiv:2006.16236).

python -m benchmarks.longest --plot=docs/results/figure1.png

Time and memory of attention with its gradients, one sequence of 512 to 65,536 tokens, 8 causal
heads of 64.  `softmax` stores all pairs of tokens, as the paper's baseline does; `softmax
blockwise` is the form with which this project trains.  A method's curve ends where the next length
would need more than --memory_gb, or more than --seconds by the growth from the last two lengths.
"""

from linear_transformer.runtime.host_memory import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()

import functools
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from etils import epath

from benchmarks import flag_checks, timing
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.feature_maps import elu_plus_one
from linear_transformer.ops.hashing import lsh_attention
from linear_transformer.ops.softmax import softmax_attention
from linear_transformer.runtime.pictures import label_lines, new_figure, save_figure

HEADS, WIDTH, BUCKETS = 8, 64, 64
# The longest sequences in the paper, on a GPU with 11 GB.
PUBLISHED = {"softmax": 4096, "lsh-4": 16384, "lsh-8": 16384, "linear": 65536}

_LENGTHS = flags.DEFINE_list("lengths", [str(2**n) for n in range(9, 17)], "Tokens, rising.")
_MEMORY_GB = flags.DEFINE_float(
    "memory_gb", 11.0, "The most that a program may need; the paper's GPU had 11."
)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "The most that a call may take.")
_PLOT = flags.DEFINE_string("plot", None, "Picture to write: time and memory over the length.")
flag_checks.whole_numbers(_LENGTHS)

COLUMNS = {
    "length": ",",
    "candidate": "",
    "ms": ",.1f",
    "min": ",.1f",
    "max": ",.1f",
    "temp MB": ",.0f",
}


def _lsh(q: jax.Array, k: jax.Array, v: jax.Array, *, rounds: int) -> jax.Array:
    del k  # queries are keys
    rotations = jax.random.normal(jax.random.key(1), (rounds, WIDTH, BUCKETS // 2))
    return lsh_attention(q, v, rotations, chunk_size=32, chunking="sorted")


METHODS: dict[str, Callable[..., jax.Array]] = {
    "linear": lambda q, k, v: linear_attention(q, k, v, feature_map=elu_plus_one)[0],
    "lsh-4": functools.partial(_lsh, rounds=4),
    "lsh-8": functools.partial(_lsh, rounds=8),
    "softmax": functools.partial(softmax_attention, form="parallel"),
    "softmax blockwise": functools.partial(softmax_attention, form="blockwise"),
}


def program(method: str, length: int) -> timing.Compiled:
    """Compiles output and gradients of a method; the call needs no arguments."""

    def both(do, *inputs):
        o, gradient = jax.vjp(METHODS[method], *inputs)
        return o, *gradient(do)

    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (1, length, HEADS, WIDTH)) for key in keys]
    compiled = timing.compile_ahead(both, *arrays)
    return compiled._replace(call=lambda: jax.block_until_ready(compiled.call(*arrays)))


def curves() -> list[dict[str, Any]]:
    """Returns a row per method and length; the methods of one length are timed in turns."""
    rows: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    growing = set(METHODS)
    for length in map(int, _LENGTHS.value):
        programs = {}
        for method in METHODS:
            if method not in growing:
                continue
            before = [row["ms"] for row in rows[method][-2:]]
            if len(before) == 2 and before[1] ** 2 / before[0] > 1e3 * _SECONDS.value:
                growing.remove(method)
                continue
            programs[method] = program(method, length)
            if programs[method].temp_bytes > 1e9 * _MEMORY_GB.value:
                del programs[method]
                growing.remove(method)
        timings = timing.interleave({m: p.call for m, p in programs.items()}, timing.ROUNDS.value)
        for method, compiled in programs.items():
            measured = timings[method]
            times = (("ms", measured.median), ("min", measured.low), ("max", measured.high))
            row = {"length": length, "candidate": method, "temp MB": compiled.temp_bytes / 1e6}
            rows[method].append(row | {name: 1e3 * seconds for name, seconds in times})
    return [row for of_method in rows.values() for row in of_method]


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Plots time and memory on logarithmic axes; dotted lines mark the paper's longest lengths."""
    what = timing.title(f"forward and backward, {HEADS} heads of {WIDTH}")
    figure, (panels,) = new_figure(1, 2, size=(9, 3.6), title=what)
    labels = {"ms": "time, ms", "temp MB": "temporary memory, MB"}
    for axis, (name, label) in zip(panels, labels.items(), strict=True):
        for method in METHODS:
            points = [(row["length"], row[name]) for row in rows if row["candidate"] == method]
            (line,) = axis.loglog(*zip(*points, strict=True), base=2, label=method)
            if method in PUBLISHED:
                length, color = PUBLISHED[method], line.get_color()
                axis.axvline(length, color=color, linestyle=":", alpha=0.6, marker="")
        axis.set(xlabel="tokens", ylabel=label)
        axis.set_yscale("log", base=10)
        label_lines(axis)
    save_figure(figure, epath.Path(path))


def main() -> None:
    rows = curves()
    timing.report(f"Attention and its gradients, {HEADS} heads of {WIDTH}", rows, COLUMNS)
    if _PLOT.value:
        plot(rows, _PLOT.value)
    ends = [{"candidate": m, "longest": _longest(rows, m)} for m in METHODS]
    timing.save("longest", {"longest": ends, "curves": rows}, size="paper size")


def _longest(rows: list[dict[str, Any]], method: str) -> int:
    return max((row["length"] for row in rows if row["candidate"] == method), default=0)


if __name__ == "__main__":
    timing.main(main)
