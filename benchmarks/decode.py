"""Decoding: tokens per second of one compiled loop, and the cost of a token by context length.

python -m benchmarks.decode
python -m benchmarks.decode --peers=fast-transformers
python -m benchmarks.decode --contexts=1024,4096,16384,65536
python -m benchmarks.decode --long --plot=build/benchmarks/decode.png
"""

from linear_transformer.runtime.host_memory import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()

import time
from collections.abc import Callable
from typing import Any

from absl import flags
from etils import epath

from benchmarks import flag_checks, peers, timing
from benchmarks.programs import Decoder
from linear_transformer.inference.generation import Sampler
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.runtime.pictures import new_figure, save_figure

_BATCHES = flags.DEFINE_list("batches", ["1", "64"], "Sequences decoded side by side.")
_STEPS = flags.DEFINE_integer("steps", 783, "Tokens decoded: those of a 28 x 28 image but one.")
_MIXERS = flags.DEFINE_list("mixers", ["linear", "softmax"], "Among: linear, softmax.")
_LAYERS = flags.DEFINE_integer("layers", 8, "Blocks.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the model.")
_HEADS = flags.DEFINE_integer("heads", 8, "Heads.")
_FEED_FORWARD = flags.DEFINE_integer("feed_forward", 1024, "Width of the feed-forward.")
_CONTEXTS = flags.DEFINE_list("contexts", [], "Cost of a token after as many, batch 1, instead.")
_LONG = flags.DEFINE_bool("long", False, "Decode --long_tokens at batch 1 instead, linear.")
_LONG_TOKENS = flags.DEFINE_integer("long_tokens", 1_000_000, "Tokens of --long.")
_SEGMENT = flags.DEFINE_integer("segment", 10_000, "Tokens per row of --long.")
_PLOT = flags.DEFINE_string("plot", None, "Picture of --long, a PNG file.")
flag_checks.whole_numbers(_BATCHES, _CONTEXTS)
flag_checks.among(("linear", "softmax"), _MIXERS)

VOCAB = 257
COLUMNS = {
    "batch": "d",
    "candidate": "",
    "sequences/s": ".2f",
    "tokens/s": ",.0f",
    "us per step": ",.0f",
    "min": ",.0f",
    "max": ",.0f",
    "state MB": ",.1f",
    "compile s": ".1f",
    "x fast-transformers": ".2f",
}
CONTEXT_COLUMNS = {
    "context": ",",
    "candidate": "",
    "us per token": ",.0f",
    "min": ",.0f",
    "max": ",.0f",
    "state MB": ",.1f",
    "temp MB": ",.1f",
}
LONG_COLUMNS = {"tokens": ",", "us per token": ",.1f", "resident MB": ",.1f"}


def make_decoder(mixer: str, batch: int, steps: int, capacity: int) -> Decoder:
    config = LanguageModelConfig(
        vocab_size=VOCAB,
        width=_WIDTH.value,
        num_layers=_LAYERS.value,
        num_heads=_HEADS.value,
        feed_forward_width=_FEED_FORWARD.value,
        pattern=(mixer,),
        mixers={"softmax": {"cache_capacity": capacity}},
    )
    return Decoder(config, batch, steps, Sampler())


def throughput(batch: int) -> list[dict[str, Any]]:
    steps = _STEPS.value
    decoders = {mixer: make_decoder(mixer, batch, steps, steps) for mixer in _MIXERS.value}
    runs: dict[str, Callable[[], Any]] = {name: d.from_start for name, d in decoders.items()}
    if peers.wanted(peers.FAST_TRANSFORMERS):
        runs[peers.FAST_TRANSFORMERS] = peers.decode(
            batch=batch,
            steps=steps,
            layers=_LAYERS.value,
            width=_WIDTH.value,
            heads=_HEADS.value,
            feed_forward=_FEED_FORWARD.value,
            vocab=VOCAB,
        )
    timings = timing.interleave(runs, timing.ROUNDS.value)
    rows = []
    for name, measured in timings.items():
        row = {"batch": batch, "candidate": name, "sequences/s": batch / measured.median}
        row["tokens/s"] = steps * row["sequences/s"]
        row |= per_token(measured, steps, "us per step")
        if name in decoders:
            row["state MB"] = decoders[name].state_bytes / 1e6
            row["compile s"] = decoders[name].compile_seconds
            if peers.FAST_TRANSFORMERS in timings:
                row["x fast-transformers"] = (
                    timings[peers.FAST_TRANSFORMERS].median / measured.median
                )
        rows.append(row)
    return rows


def per_token(measured: timing.Timing, steps: int, name: str) -> dict[str, float]:
    median, low, high = (1e6 * seconds / steps for seconds in measured)
    return {name: median, "min": low, "max": high}


def by_context(context: int, steps: int = 32) -> list[dict[str, Any]]:
    decoders = {mixer: make_decoder(mixer, 1, steps, context) for mixer in _MIXERS.value}
    runs = {name: d.at(max(context - steps, 0)) for name, d in decoders.items()}
    timings = timing.interleave(runs, timing.ROUNDS.value)
    return [
        {
            "context": context,
            "candidate": name,
            **per_token(timings[name], steps, "us per token"),
            "state MB": decoder.state_bytes / 1e6,
            "temp MB": decoder.temp_bytes / 1e6,
        }
        for name, decoder in decoders.items()
    ]


def long() -> list[dict[str, Any]]:
    decoder = make_decoder("linear", 1, _SEGMENT.value, 1)
    decoder()  # the first call allocates the memory that later calls reuse
    rows = []
    for tokens in range(0, _LONG_TOKENS.value, _SEGMENT.value):
        began = time.perf_counter()
        decoder()
        seconds = time.perf_counter() - began
        rows.append(
            {
                "tokens": tokens + 2 * _SEGMENT.value,
                "us per token": 1e6 * seconds / _SEGMENT.value,
                "resident MB": timing.resident_bytes() / 1e6,
            }
        )
    return rows


def plot(rows: list[dict[str, Any]], path: str) -> None:
    figure, panels = new_figure(2, size=(7, 5), title=timing.title("decoding"), sharex=True)
    axes = panels[:, 0]
    millions = [row["tokens"] / 1e6 for row in rows]
    for axis, name, label in (
        (axes[0], "us per token", "time per token [µs]"),
        (axes[1], "resident MB", "resident memory [MB]"),
    ):
        axis.plot(millions, [row[name] for row in rows])
        axis.set(ylabel=label, ylim=(0, None))
    axes[1].set(xlabel="tokens decoded [millions]")
    save_figure(figure, epath.Path(path))
    print(f"wrote {path}")


def main() -> None:
    sizes = f"{_LAYERS.value} layers, width {_WIDTH.value}, {_HEADS.value} heads"
    if _LONG.value:
        rows = long()
        shown = rows[:: max(1, len(rows) // 10)]
        shown += [] if shown[-1] is rows[-1] else [rows[-1]]
        timing.report(f"Decoding on and on, batch 1, {sizes}", shown, LONG_COLUMNS)
        timing.save("decode-long", {"long": rows})
        if _PLOT.value:
            plot(rows, _PLOT.value)
    elif _CONTEXTS.value:
        rows = [row for context in _CONTEXTS.value for row in by_context(int(context))]
        timing.report(f"A token at the end of a context, batch 1, {sizes}", rows, CONTEXT_COLUMNS)
        timing.save("decode-contexts", {"contexts": rows})
    else:
        rows = [row for batch in _BATCHES.value for row in throughput(int(batch))]
        timing.report(f"Decoding {_STEPS.value} tokens, {sizes}", rows, COLUMNS)
        timing.save("decode", {"decode": rows})


if __name__ == "__main__":
    timing.main(main)
