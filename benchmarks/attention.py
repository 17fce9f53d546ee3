"""Attention operators, forward and backward: every form, and the peers.

python -m benchmarks.attention
python -m benchmarks.attention --peers=fast-transformers,torch
python -m benchmarks.attention --forms=chunk --lengths=1024,4096,16384,65536,131072
python -m benchmarks.attention --sweep --lengths=4096,16384

Linear attention is causal and normalised, with elu + 1 on queries and keys; `unnormalised` rows are
the chunk form and the peer's kernel without feature map and normaliser.  The rows of the gated and
the delta family are chunk forms, including the gradients of gates and steps.
"""

from linear_transformer.runtime.host_memory import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath

from benchmarks import flag_checks, peers, timing
from linear_transformer.ops import additive, block_loop
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.delta import delta_attention
from linear_transformer.ops.feature_maps import elu_plus_one
from linear_transformer.ops.softmax import softmax_attention
from linear_transformer.runtime.pictures import label_lines, new_figure, save_figure

# The longest input of each candidate; a longer one takes minutes or tens of gigabytes.
LONGEST = {
    "recurrent": 2048,
    "associative": 2048,
    "parallel": 4096,
    "softmax blockwise": 16384,
    "softmax parallel": 4096,
    "jax.nn.dot_product_attention": 4096,
    "torch SDPA": 16384,
}
FORMS = ("chunk", "associative", "recurrent", "parallel", "unnormalised")
GATED_FORMS = ("scalar decay", "vector decay", "value decay", "delta", "gated delta", "kimi delta")
SOFTMAX_FORMS = ("softmax blockwise", "softmax parallel", "jax.nn.dot_product_attention")

_FORMS = flags.DEFINE_list(
    "forms",
    [*FORMS, *GATED_FORMS, *SOFTMAX_FORMS],
    f"Among: {', '.join((*FORMS, *GATED_FORMS, *SOFTMAX_FORMS))}.",
)
_LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096", "16384"], "Tokens.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Types of queries, keys and values.")
_BATCH = flags.DEFINE_integer("batch", 1, "Sequences.")
_HEADS = flags.DEFINE_integer("heads", 8, "Heads.")
_WIDTH = flags.DEFINE_integer("width", 64, "Width of keys and values per head.")
_PLOT = flags.DEFINE_string("plot", None, "Picture of time and memory against length.")
_SWEEP = flags.DEFINE_bool("sweep", False, "Time chunk sizes and chunks per block instead.")
_CHUNK_SIZES = flags.DEFINE_list("chunk_sizes", ["32", "64", "128", "256"], "For --sweep.")
_CHUNKS_PER_BLOCK = flags.DEFINE_list("chunks_per_block", ["1", "4", "8", "16"], "For --sweep.")
flag_checks.whole_numbers(_LENGTHS, _CHUNK_SIZES, _CHUNKS_PER_BLOCK)
flag_checks.among((*FORMS, *GATED_FORMS, *SOFTMAX_FORMS), _FORMS)

COLUMNS = {
    "length": ",",
    "dtype": "",
    "candidate": "",
    "ms": ",.2f",
    "min": ",.2f",
    "max": ",.2f",
    "ms per 1k tokens": ".2f",
    "GFLOP/s": ",.0f",
    "of matmul": ".0%",
    "temp MB": ",.0f",
    "compile s": ".2f",
    "x peer": ".2f",
    "note": "",
}


class Candidate(NamedTuple):
    """Row of the table: a function to time, and the peer to compare it with."""

    run: Callable[[], Any]
    flops: float
    peer: str | None = None
    facts: dict[str, Any] = {}  # noqa: RUF012


def linear(q: jax.Array, k: jax.Array, v: jax.Array, *, form: str, **options: Any) -> jax.Array:
    return additive.linear_attention(q, k, v, feature_map=elu_plus_one, form=form, **options)[0]


_LINEAR = ("chunk", "associative", "recurrent", "parallel")  # forms of linear attention
OPERATORS: dict[str, Callable[..., jax.Array]] = {
    "chunk": lambda q, k, v: linear(q, k, v, form="chunk"),
    "associative": lambda q, k, v: linear(q, k, v, form="associative"),
    "recurrent": lambda q, k, v: linear(q, k, v, form="recurrent"),
    "parallel": lambda q, k, v: linear(q, k, v, form="parallel"),
    "unnormalised": lambda q, k, v: additive.linear_attention(
        q, k, v, feature_map=None, normalize=False, form="chunk"
    )[0],
    "softmax blockwise": lambda q, k, v: softmax_attention(q, k, v, form="blockwise"),
    "softmax parallel": lambda q, k, v: softmax_attention(q, k, v, form="parallel"),
    "jax.nn.dot_product_attention": lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, is_causal=True
    ),
    "scalar decay": lambda q, k, v, gate: decayed_attention(q, k, v, gate[..., 0])[0],
    "vector decay": lambda q, k, v, gate: decayed_attention(q, k, v, gate)[0],
    "value decay": lambda q, k, v, gate: decayed_attention(
        q, k, v, None, log_value_decay_BTHV=gate
    )[0],
    "delta": lambda q, k, v, beta: delta_attention(q, k, v, None, beta)[0],
    "gated delta": lambda q, k, v, gate, beta: delta_attention(q, k, v, gate[..., 0], beta)[0],
    "kimi delta": lambda q, k, v, gate, beta: delta_attention(q, k, v, gate, beta)[0],
}


def flops(name: str, time: int) -> float:
    """FLOPs of the products in a forward and a backward pass, multiply-adds counted as two.

    chunk: all products of the form, masked halves included.  Softmax and parallel: 2 products
    forward and 5 backward over the causal half.  Others: k v^T and q^T S forward, and twice as many
    FLOPs backward; the delta rule has S^T k too.
    """
    width = _WIDTH.value
    if "softmax" in name or "SDPA" in name or name in ("parallel", "jax.nn.dot_product_attention"):
        per_token = 7 * width * time
    elif name in ("chunk", "unnormalised"):
        values, chunk = width + (name == "chunk"), min(additive.CHUNK_SIZE, time)
        per_token = 2 * (chunk * (4 * width + 3 * values) + 7 * width * values)
    else:
        per_token = (18 if "delta" in name else 12) * width * width
    return float(_BATCH.value * _HEADS.value * time * per_token)


def forward_and_backward(operator: Callable[..., jax.Array]) -> Callable[..., Any]:
    def both(do, *inputs):
        o, gradient = jax.vjp(operator, *inputs)
        return o, *gradient(do)

    return both


def compiled(operator: Callable[..., jax.Array], inputs: list[jax.Array]) -> timing.Compiled:
    program = timing.compile_ahead(forward_and_backward(operator), *inputs)
    return program._replace(call=lambda: jax.block_until_ready(program.call(*inputs)))


def make_inputs(time: int, dtype: str, name: str = "") -> list[jax.Array]:
    """Returns the output's gradient, queries, keys, values, and the gates and steps of `name`."""
    keys = jax.random.split(jax.random.key(0), 6)
    shape = (_BATCH.value, time, _HEADS.value, _WIDTH.value)
    inputs = [jax.random.normal(key, shape).astype(dtype) for key in keys[:4]]
    if "delta" in name:  # unit keys, else the state grows without bound
        inputs[2] /= jnp.linalg.norm(inputs[2], axis=-1, keepdims=True)
    if "decay" in name or name in ("gated delta", "kimi delta"):
        inputs.append(jax.nn.log_sigmoid(jax.random.normal(keys[4], shape) + 3))
    if "delta" in name:
        inputs.append(jax.nn.sigmoid(jax.random.normal(keys[5], shape[:3])))
    return inputs


def candidates(time: int, dtype: str) -> dict[str, Candidate | str]:
    """Returns the candidates at this length, or the reason why a candidate is left out."""
    shape = (_BATCH.value, time, _HEADS.value, _WIDTH.value)
    found: dict[str, Candidate | str] = {}
    peer_runs: dict[str, Callable[[], Callable[[], Any]]] = {}
    if peers.wanted(peers.FAST_TRANSFORMERS) and dtype == "float32":  # the only dtype of its kernel
        if {*_FORMS.value} & {"chunk", "associative", "recurrent", "parallel"}:
            peer_runs["fast-transformers layer"] = lambda: peers.linear_attention(*shape)
        if "unnormalised" in _FORMS.value:
            peer_runs["fast-transformers kernel"] = lambda: peers.causal_dot_product(*shape)
    if peers.wanted(peers.TORCH) and {*_FORMS.value} & {*SOFTMAX_FORMS}:
        peer_runs["torch SDPA"] = lambda: peers.softmax_attention(*shape, dtype)
    for name in [*_FORMS.value, *peer_runs]:
        if time > LONGEST.get(name, time):
            found[name] = f"skipped above {LONGEST[name]:,}: slow or too large"
        elif name in peer_runs:
            found[name] = Candidate(peer_runs[name](), flops(name, time))
        else:
            program = compiled(OPERATORS[name], make_inputs(time, dtype, name))
            facts = {"temp MB": program.temp_bytes / 1e6, "compile s": program.compile_seconds}
            peer = "fast-transformers layer"
            if name == "unnormalised":
                peer = "fast-transformers kernel"
            elif name in SOFTMAX_FORMS:
                peer = "torch SDPA"
            found[name] = Candidate(program.call, flops(name, time), peer, facts)
    return found


def compare(matmul: float) -> list[dict[str, Any]]:
    rows = []
    for time, dtype in itertools.product(map(int, _LENGTHS.value), _DTYPES.value):
        found = candidates(time, dtype)
        runs = {name: c.run for name, c in found.items() if isinstance(c, Candidate)}
        timings = timing.interleave(runs, timing.ROUNDS.value)
        for name, candidate in found.items():
            row = {"length": time, "dtype": dtype, "candidate": name}
            if isinstance(candidate, str):
                rows.append(row | {"note": candidate})
                continue
            seconds = timings[name].median
            rate = candidate.flops / seconds
            row |= milliseconds(timings[name])
            row |= {
                "ms per 1k tokens": 1e3 * seconds / (time * _BATCH.value / 1024),
                "GFLOP/s": rate / 1e9,
                "of matmul": rate / matmul,
                **candidate.facts,
            }
            if candidate.peer in timings:
                row["x peer"] = timings[candidate.peer].median / seconds
            rows.append(row)
    return rows


def milliseconds(measured: timing.Timing) -> dict[str, float]:
    return {"ms": 1e3 * measured.median, "min": 1e3 * measured.low, "max": 1e3 * measured.high}


def sweep() -> list[dict[str, Any]]:
    rows = []
    for time, dtype in itertools.product(map(int, _LENGTHS.value), _DTYPES.value):
        inputs = make_inputs(time, dtype)
        programs = {}
        for size, count in itertools.product(
            map(int, _CHUNK_SIZES.value), map(int, _CHUNKS_PER_BLOCK.value)
        ):

            def operator(q, k, v, size=size):
                return linear(q, k, v, form="chunk", chunk_size=size)

            with mock.patch.multiple(block_loop, MAX_CHUNKS=count, CACHED_NUMBERS=1 << 62):
                programs[size, count] = compiled(operator, inputs)
        runs = {f"{size} x {count}": p.call for (size, count), p in programs.items()}
        timings = timing.interleave(runs, timing.ROUNDS.value)
        for (size, count), program in programs.items():
            row = {"length": time, "dtype": dtype, "chunk size": size, "chunks per block": count}
            row |= milliseconds(timings[f"{size} x {count}"])
            rows.append(row | {"temp MB": program.temp_bytes / 1e6})
    return rows


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Plots time and memory of every candidate against the length, on logarithmic axes."""
    what = timing.title(f"forward and backward, {shape()}")
    figure, (panels,) = new_figure(1, 2, size=(9, 3.6), title=what)
    labels = {"ms": "time, ms", "temp MB": "temporary memory, MB"}
    for axis, (name, label) in zip(panels, labels.items(), strict=True):
        for candidate in dict.fromkeys(row["candidate"] for row in rows):
            mine = [r for r in rows if r["candidate"] == candidate and r.get(name) is not None]
            if mine:
                points = [(row["length"], row[name]) for row in mine]
                method = f"linear, {candidate} form" if candidate in _LINEAR else candidate
                axis.loglog(*zip(*points, strict=True), label=method)
        axis.set(xlabel="tokens", ylabel=label)
        label_lines(axis)
    save_figure(figure, epath.Path(path))


def shape() -> str:
    return f"B{_BATCH.value} H{_HEADS.value} K=V={_WIDTH.value}"


def main() -> None:
    if _SWEEP.value:
        rows = sweep()
        names = ("length", "dtype", "chunk size", "chunks per block", "ms", "min", "max", "temp MB")
        columns = {name: COLUMNS.get(name, "d") for name in names}
        timing.report("Chunk form, forward and backward", rows, columns)
        timing.save("attention-sweep", {"sweep": rows})
        return
    matmul = timing.matmul_flops_per_second()
    rows = compare(matmul)
    ceiling = f"a 2048^3 fp32 matmul runs at {matmul / 1e9:,.0f} GFLOP/s"
    timing.report(f"Forward and backward, {shape()}; {ceiling}", rows, COLUMNS)
    if _PLOT.value:
        plot(rows, _PLOT.value)
    timing.save("attention", {"attention": rows}, matmul_gflops=matmul / 1e9)


if __name__ == "__main__":
    timing.main(main)
